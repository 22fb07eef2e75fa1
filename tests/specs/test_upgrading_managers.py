"""See test_upgrading.py: managers and documents."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from modules import loaded
from waiting import wait_until

import diagnose
import diagnose_mongo
from diagnose import instruments, managers
from diagnose.instruments import IncrementInstrument, LogInstrument, ProbeTestInstrument
from diagnose.managers import InstrumentManager, mag
from diagnose.sinks.statsd import StatsdSink

SOURCE = """
RATE = 3

def double(x):
    return x * 2
"""


@pytest.fixture
def manager(shop):
    made = InstrumentManager("me")
    yield made
    made.stop()


def spec(**changes):
    return {
        "target": "probed_shop.double",
        "instrument": {
            "type": "log",
            "name": "n",
            "value": "result",
            "event": "return",
            "custom": {"tags": "{'size': mag(x)}"},
        },
        "lifespan": 10,
        "lastmodified": datetime.now(UTC).replace(tzinfo=None),
        "applied": {},
    } | changes


# --- what goes on as it is --------------------------------------------------------------------


def test_a_manager_and_what_is_overridden_in_it_are_used(shop):
    """Managers."""
    told = []

    class Mine(InstrumentManager):
        def get_tags(self):
            return {"service": "web"}

        def handle_error(self, probe=None, instrument=None):
            told.append(("error", probe.target, instrument.name, sys.exc_info()[0]))

        def mark(self, id, doc, exception=False):  # noqa: A002 - as in programs
            told.append(("mark", id, exception))
            super().mark(id, doc, exception)

    class Keeps(ProbeTestInstrument):
        made: ClassVar[list] = []

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.made.append(self)

    assert isinstance(diagnose.manager, managers.InstrumentManager)
    manager = Mine("me")
    try:
        assert {"log", "hist", "incr"} <= manager.instrument_classes.keys()
        assert {"datetime", "math", "time", "mag"} <= manager.global_namespace.keys()
        manager.instrument_classes["keeps"] = Keeps
        manager.global_namespace["ten"] = lambda x: 10 // x
        instrument = {"type": "keeps", "name": "n", "value": "ten(x)"}
        manager.specs["s"] = spec(instrument=instrument)
        manager.specs["bad"] = spec(target="probed_shop.nothing")
        manager.apply()
        assert told == [("mark", "s", False), ("mark", "bad", True)]
        shop.double(2)
        assert Keeps.made[0].log == [({"service": "web"}, 5)]
        assert manager.check_call(None, Keeps.made[0], 1) is True
        shop.double(0)
        wait_until(lambda: len(told) > 2)
        assert told[2] == ("error", "probed_shop.double", "n", ZeroDivisionError)
    finally:
        manager.stop()


def test_a_manager_applies_in_the_background(shop, manager):
    applied = threading.Event()

    class Telling(InstrumentManager):
        def apply(self):
            super().apply()
            applied.set()

    telling = Telling("other")
    telling.specs["s"] = spec()
    telling.apply_in_background(period=60)
    try:
        assert applied.wait(30)
        assert telling.specs["s"]["applied"]["other"]["err"] is None
    finally:
        telling.stop()


def test_a_document_of_then_is_applied(shop, manager, capsys):
    """Spec documents."""
    document = manager.specs["s"] = spec()
    manager.apply()
    shop.double(25)
    assert capsys.readouterr().out == "Probe (n)[tags={'size': 1}] = 50\n"
    entry = document["applied"]["me"]
    assert (entry["lm"], entry["err"]) == (document["lastmodified"], None)
    document["lastmodified"] = datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=11)
    manager.apply()
    shop.double(25)
    assert capsys.readouterr().out == ""


def test_the_manager_for_mongodb_has_its_old_name(shop, database):
    """The manager for MongoDB."""
    from diagnose.managers import MongoDBInstrumentManager

    class Mine(MongoDBInstrumentManager):
        def get_tags(self):
            return {"service": "web"}

    assert issubclass(Mine, diagnose_mongo.MongoInstrumentManager)
    assert issubclass(Mine, managers.InstrumentManager)
    database["specs"].insert_one({"_id": 1, "id": "a", **spec()})
    manager = Mine("web.1", database["specs"])
    assert MongoDBInstrumentManager(None, database["specs"], "name").id_field == "name"
    try:
        out = LogInstrument.out = io.StringIO()
        manager.apply()
        shop.double(25)
    finally:
        LogInstrument.out = None
        manager.stop()
    assert out.getvalue() == "Probe (n)[tags={'service': 'web', 'size': 1}] = 50\n"


@pytest.mark.parametrize("missing", ["pymongo", "diagnose_mongo"])
def test_without_what_the_manager_for_mongodb_needs_it_says_what_to_install(missing):
    code = f"""
import sys
sys.modules[{missing!r}] = None
import diagnose.managers
try:
    diagnose.managers.MongoDBInstrumentManager
except ImportError as error:
    print(error)
try:
    diagnose.managers.Nothing
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert missing in first
    assert "pip install 'diagnose-mongo[mongo]'" in first
    assert second == "module 'diagnose.managers' has no attribute 'Nothing'"


def test_mag_is_the_magnitude_of_a_number_or_of_a_length(shop):
    """`mag(obj, base=10)`."""
    cases = {
        3: [
            (1234,),
            (1000,),
            ("x" * 1000,),
            ([1] * 1234,),
            (8, 2),
            (9, 2),
            ("ab" * 4, 2),
            (125, 5),
        ],
        0: [(1,), (0.5,), (9.99,), (True,), ({1: 1},), (7, 10)],
        -1: [(0,), (-5,), (0.05,), ("",), ([],), ({},), (None,), (object(),), (float("nan"),)],
        5: [(243, 3)],
        400: [(10**400,)],
    }
    for magnitude, all_of_it in cases.items():
        for given in all_of_it:
            assert mag(*given) == magnitude, given
    assert mag([1] * 9, base=3) == 2
    assert mag(float("inf")) == -1
    for base in (1, 0, -1):
        with pytest.raises((ValueError, ArithmeticError)):
            mag(5, base)
    with diagnose.sensor("probed_shop.double", "(mag('x' * 100), mag(8, base=2))") as seen:
        shop.double(1)
    assert seen.results == [(2, 3)]


# --- what differs -----------------------------------------------------------------------------


def test_applying_does_not_raise_for_a_path_that_leads_nowhere(shop, manager):
    """`apply()` does not raise."""
    bad = manager.specs["bad"] = spec(target="probed_shop.nothing")
    good = manager.specs["good"] = spec()
    manager.apply()
    assert "has no 'nothing'" in bad["applied"]["me"]["err"]
    assert good["applied"]["me"]["err"] is None


def test_a_spec_waits_for_its_module(manager):
    """Specs import nothing."""
    document = manager.specs["s"] = spec(target="smtpd_of_nobody.nothing")
    manager.specs["later"] = later = spec(target="mailcap_like.double")
    manager.apply()
    assert document["applied"]["me"]["state"] in {"pending", "error"}
    assert "mailcap_like" not in sys.modules
    with loaded("mailcap_like", SOURCE):
        manager.apply()
        assert later["applied"]["me"]["state"] == "installed"


def test_an_entry_has_a_state_and_a_time(shop, manager):
    """`applied` says more."""
    document = manager.specs["s"] = spec()
    manager.apply()
    entry = document["applied"]["me"]
    assert entry.keys() == {"lm", "err", "state", "at"}
    assert (entry["state"], type(entry["at"])) == ("installed", datetime)


def test_a_manager_has_a_process_id():
    """A manager has a process id."""
    assert InstrumentManager().process_id == InstrumentManager(None).process_id
    assert re.fullmatch(r".+-\d+", diagnose.manager.process_id)


def test_specs_in_mongodb_go_by_their_id(shop, database):
    """Specs in MongoDB go by `_id`."""
    marked = []

    class Mine(managers.MongoDBInstrumentManager):
        def mark(self, id, doc, exception=False):  # noqa: A002 - as in programs
            marked.append(id)
            super().mark(id, doc, exception)

    database["specs"].insert_one({"_id": 1, "id": "a", **spec()})
    manager = Mine("web", database["specs"], id_field="id")
    try:
        manager.apply()
        assert list(manager.specs) == marked == [1]
    finally:
        manager.stop()


def test_expressions_are_restricted_under_the_manager_s_own_name_only(database):
    """Restricted expressions."""
    own = diagnose_mongo.MongoInstrumentManager(database["specs"])
    old = managers.MongoDBInstrumentManager("me", database["specs"])
    asked = managers.MongoDBInstrumentManager(
        "me", database["specs"], expression_policy="restricted"
    )
    policies = [each.expression_policy for each in (own, old, asked)]
    assert policies == ["restricted", "python", "restricted"]


def test_statsd_is_a_sink(manager):
    """StatsD is a sink."""
    assert not hasattr(instruments, "statsd")
    sink = StatsdSink("127.0.0.1", 8125)
    manager.sinks.append(sink)
    assert IncrementInstrument("n", "1", mgr=manager).sinks == [sink]


def test_names_from_the_functions_module_are_known(shop, manager):
    """Names from the function's module."""
    manager.global_namespace["two"] = 2
    with diagnose.sensor("probed_shop.double", "RATE + two + x", mgr=manager) as seen:
        shop.double(1)
    assert seen.results == [6]
