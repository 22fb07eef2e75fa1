"""What `install` sets up, and that its roles are enough and not more, with authentication on."""

from __future__ import annotations

import json
import subprocess
import threading
from datetime import datetime

import pymongo
import pytest
from modules import spec
from pymongo.errors import OperationFailure, WriteError
from waiting import wait_until

from diagnose.errors import SpecError, StoreError
from diagnose.fields import FIELDS
from diagnose.instruments import ProbeTestInstrument
from diagnose.specs import parse
from diagnose_mongo import changes, documents
from diagnose_mongo.cli.doctor import examine
from diagnose_mongo.cli.output import Output
from diagnose_mongo.installation import install, install_roles
from diagnose_mongo.rollouts import rollout
from diagnose_mongo.server import LocalServer, find_mongod
from diagnose_mongo.store import ControlStore, Link, ProcessStore
from diagnose_mongo.worker.manager import MongoInstrumentManager


def test_installing_twice_is_installing_once(database):
    link = Link(database["specs"])
    first = install(link)
    indexes = {name: database[name].index_information() for name in ("specs", "processes")}
    assert install(link) == first
    assert indexes == {name: database[name].index_information() for name in indexes}
    assert documents.POLL_INDEX in indexes["specs"]
    assert any("expireAfterSeconds" in each for each in indexes["processes"].values())


def test_specs_that_are_none_are_refused_and_others_are_not(database):
    database["specs"].insert_one({"_id": "old", "target": 5})
    install(Link(database["specs"]))
    for bad in (
        spec(target=5),
        spec(target=""),
        spec(lastmodified="today"),
        spec(instrument="log"),
        spec(instrument={"value": "x"}),
        spec(lifespan="10"),
        spec(lifespan=-1),
        spec(select={"percent": 101}),
        spec(select={"service": [5]}),
        spec(limits={"rate": "x"}),
        spec(applied=5),
    ):
        with pytest.raises(WriteError, match="failed validation"):
            database["specs"].insert_one(bad)
    database["specs"].insert_one(spec("b", lifespan=None, when="x > 1", select={"percent": 5.5}))
    # What was there before can take entries still.
    database["specs"].update_one({"_id": "old"}, {"$set": {"applied.web": {"err": "x"}}})
    assert database["specs"].find_one({"_id": "old"})["applied"]


_FAILED_VALIDATION = 121
VALUES = [
    *(None, "", "x", "3.11-0f3a9c52d7be-42", ["x", "y"], [], [1], True, False, {}, {"type": "log"}),
    *(-1, 0, 1, 2, 0.5, 1.0, 1.5, 43_200, 43_201, 100, 101, 5_270_400, 5_270_401),
    *(10**9, 10**9 + 1, 1e-9, float("inf"), datetime(2026, 1, 1)),
]


@pytest.mark.parametrize("path", [path for path, field in FIELDS.items() if not field.is_ours])
def test_the_validator_takes_what_processes_take_and_nothing_else(database, path):
    link = Link(database.specs)
    install(link)
    differ = []
    for number, value in enumerate(VALUES):
        document = spec(f"a{number}", canary={"percent": 5} if path.startswith("canary.") else None)
        place, names = document, path.split(".")
        for name in names[:-1]:
            if place.get(name) is None:
                place[name] = {}
            place = place[name]
        if path == "_id" and value is None:
            continue
        place[names[-1]] = value
        try:
            parse("a", document, instrument_types=None)
        except SpecError as error:
            if error.code == "bad-fingerprint":  # the validator does not know how one is written
                continue
            says = error.code
        else:
            says = "fine"
        try:
            database.specs.insert_one(document)
        except WriteError as error:
            if path == "_id" and error.code != _FAILED_VALIDATION:  # 1.0 is there, or it is a list
                continue
            is_taken = False
        else:
            is_taken = True
        if is_taken != (says == "fine"):
            differ.append(f"{path}: {value!r}: {says}, and the validator takes it: {is_taken}")
    assert differ == []


def test_the_dead_are_removed_by_the_server(database):
    install(Link(database["specs"]))
    processes = ProcessStore(Link(database["specs"]))
    processes.beat("web", {}, 0.001)
    wait_until(lambda: database["processes"].count_documents({}) == 0)


# --- with authentication ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A function that connects as a user of a role, to a server that asks who one is."""
    path = tmp_path_factory.mktemp("guarded")
    with LocalServer(dbpath=path / "data") as server:
        port = server.port
        with pymongo.MongoClient(server.uri) as client:
            database = client["guarded"]
            link = Link(database["specs"])
            install(link)
            for role in install_roles(link):
                database.command("createUser", role, pwd="secret", roles=[role])
            assert len(install_roles(link)) == 3  # again, it changes nothing
            client["admin"].command("createUser", "root", pwd="secret", roles=["root"])
    key = path / "key"
    key.write_text("c2VjcmV0c2VjcmV0")
    key.chmod(0o600)
    command = [str(find_mongod()), "--bind_ip", "127.0.0.1", "--port", str(port)]
    command += ["--dbpath", str(path / "data"), "--nounixsocket", "--replSet", "rs0"]
    command += ["--keyFile", str(key), "--logpath", str(path / "log")]
    process = subprocess.Popen(command)
    clients = []

    def connect(user):
        source = "admin" if user == "root" else "guarded"
        uri = f"mongodb://{user}:secret@127.0.0.1:{port}/?directConnection=true&authSource={source}"
        clients.append(pymongo.MongoClient(uri))
        return Link(clients[-1]["guarded"]["specs"])

    try:
        root = connect("root")
        wait_until(
            lambda: root.collection.database.client.admin.command("hello")["isWritablePrimary"]
        )
        yield connect
    finally:
        for client in clients:
            client.close()
        process.terminate()
        process.wait()


@pytest.fixture
def empty(guarded):
    yield
    database = guarded("root").collection.database
    for name in database.list_collection_names():
        database[name].delete_many({})


@pytest.mark.usefixtures("empty")
def test_a_worker_needs_no_more_than_its_role(guarded, shop, caplog):
    operator = guarded("diagnoseOperator")
    operator.collection.insert_one(spec(limits={"fleet_hits": 10}))
    manager = MongoInstrumentManager(
        guarded("diagnoseWorker"), process_id="web", heartbeat=0.01, period=0.01, watch=True
    )
    manager.instrument_classes["seen"] = ProbeTestInstrument
    manager.start()
    try:
        wait_until(lambda: rollout(guarded("diagnoseViewer"), "a").counts == {"installed": 1})
        shop.double(1)
        wait_until(lambda: rollout(operator, "a").counts == {"emitting": 1})
        ControlStore(operator).set({"paused": True})
        wait_until(lambda: rollout(operator, "a").counts == {"disabled": 1})
        wait_until(lambda: manager._session._chores._turns > 2)
    finally:
        manager.stop()
    assert ProcessStore(operator).count() == 0
    assert not caplog.text, caplog.text


@pytest.mark.usefixtures("empty")
def test_roles_allow_no_more_than_they_say(guarded):
    def is_refused(role, action):
        with pytest.raises((OperationFailure, StoreError)) as caught:
            action(guarded(role))
        return "not authorized" in str(caught.value)

    assert is_refused("diagnoseWorker", lambda link: link.collection.insert_one(spec("x")))
    assert is_refused("diagnoseWorker", lambda link: link.collection.delete_many({}))
    assert is_refused("diagnoseWorker", install)
    assert is_refused("diagnoseOperator", install)
    assert is_refused("diagnoseViewer", lambda link: link.collection.insert_one(spec("x")))
    assert is_refused("diagnoseViewer", lambda link: ControlStore(link).set({"paused": True}))
    assert is_refused("diagnoseViewer", lambda link: link.collection.update_one({}, {"$set": {}}))


@pytest.mark.usefixtures("empty")
def test_an_operator_changes_specs_and_workers_notice_what_is_done_by_hand(guarded, shop):
    operator = guarded("diagnoseOperator")
    manager = MongoInstrumentManager(guarded("diagnoseWorker"), process_id="web")
    manager.apply()
    document = spec()
    del document["lastmodified"]
    changes.add(operator, document, by="ann")
    changes.change(operator, "a", {"lifespan": 5}, by="ann")
    operator.collection.update_one({"_id": "a"}, {"$set": {"lifespan": 6}})
    manager._session._polls = 60
    manager.apply()
    changes.remove(operator, "a", by="ann")
    manager.stop()
    found = [(e.action, e.by) for e in changes.history(guarded("diagnoseViewer"))]
    assert found == [("remove", "ann"), ("change", None), ("change", "ann"), ("add", "ann")]


@pytest.mark.usefixtures("empty")
def test_a_removal_that_is_refused_is_recorded_as_such(guarded, shop):
    root = guarded("root")
    root.collection.insert_one(spec())
    with pytest.raises(StoreError, match="not authorized"):
        changes.remove(guarded("diagnoseWorker"), "a", by="ann")
    assert "not authorized" in changes.history(root)[0].failed
    assert root.collection.find_one() is not None


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("diagnoseOperator", "may read and change all that it needs"),
        ("diagnoseViewer", "may look, and may not change specs, control, history"),
    ],
)
def test_the_doctor_says_what_a_user_may_do(guarded, capsys, user, words):
    assert examine(Output(is_json=True), guarded(user)) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [words in each["text"] for each in findings if each["what"] == "rights"] == [True]
    # Neither needs more than its role for anything that is looked at.
    assert "not authorized" not in str(findings)


@pytest.mark.usefixtures("empty")
def test_with_rights_to_the_specs_alone_specs_are_applied_all_the_same(guarded, shop, caplog):
    root = guarded("root")
    database = root.collection.database
    privileges = [
        {"resource": {"db": "guarded", "collection": "specs"}, "actions": ["find", "update"]}
    ]
    database.command("createRole", "old", privileges=privileges, roles=[])
    database.command("createUser", "old", pwd="secret", roles=["old"])
    root.collection.insert_one(spec())
    manager = MongoInstrumentManager(guarded("old"), process_id="web")
    manager.instrument_classes["seen"] = ProbeTestInstrument
    for _ in range(3):
        manager.apply()
    shop.double(1)
    manager.apply()
    assert root.collection.find_one()["applied"]["web"]["state"] == "emitting"
    manager.stop()
    assert root.collection.find_one()["applied"] == {}
    said = [record.message for record in caplog.records]
    assert len(said) == len(set(said)) == 2
    assert all("the specs are applied all the same" in text for text in said)


def test_changes_come_at_once_when_they_are_watched(database, shop):
    manager = MongoInstrumentManager(database["specs"], process_id="web", period=3600, watch=True)
    manager.instrument_classes["seen"] = ProbeTestInstrument
    polled = threading.Event()
    read = manager._session.read

    def reads(poll):
        try:
            return read(poll)
        finally:
            polled.set()

    manager._session.read = reads
    manager.start()
    try:
        assert polled.wait(30)
        # The stream may open after this; but then the poll that follows an opening finds it.
        wait_until(lambda: manager._watcher.is_following)
        database["specs"].insert_one(spec())
        wait_until(lambda: rollout(database["specs"], "a").counts == {"installed": 1})
        database["specs"].delete_one({"_id": "a"})
        wait_until(lambda: not manager.specs)
    finally:
        manager.stop()
