from __future__ import annotations

import os
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnose_mongo.worker import identity
from diagnose_mongo.worker.identity import Identity, new_process_id, sanitize

FIELD_NAME = re.compile(r"[A-Za-z0-9_-]+")


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No variable of those that labels come from; the file that would name the control group."""
    for variables in identity.LABEL_VARIABLES.values():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
    for variable in ("OTEL_RESOURCE_ATTRIBUTES", "KUBERNETES_SERVICE_HOST", "INVOCATION_ID"):
        monkeypatch.delenv(variable, raising=False)
    group = tmp_path / "cgroup"
    monkeypatch.setattr(identity, "_CGROUP_FILE", group)
    return group


def test_a_process_id_is_host_pid_and_start(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "web1")
    host, pid, start = new_process_id().split("-")
    assert (host, pid) == ("web1", str(os.getpid()))
    assert re.fullmatch("[0-9a-z]{8,}", start)


def test_a_later_process_with_the_same_host_and_pid_has_another_id(monkeypatch):
    first = new_process_id()
    monkeypatch.setattr(identity, "_now_in_ms", lambda: 36**9)
    second = new_process_id()
    assert second != first
    assert second.endswith("-1000000000")


def test_two_managers_of_the_same_millisecond_have_different_ids(monkeypatch):
    monkeypatch.setattr(identity, "_now_in_ms", lambda: 36**9)
    assert len({new_process_id() for _ in range(100)}) == 100


def test_a_hosts_dots_do_not_get_into_the_id(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "ip-10-0-0-1.ec2.internal")
    assert FIELD_NAME.fullmatch(new_process_id())


@pytest.mark.parametrize(
    ("given_id", "used"),
    [("web1", "web1"), ("web.1", "web_1"), ("$web 1\0", "_web_1_"), ("wéb", "w_b"), (7, "7")],
)
def test_a_given_id_is_kept_but_for_what_a_field_name_can_not_have(given_id, used):
    assert Identity.make(given_id).process_id == used


@pytest.mark.parametrize("nothing", [None, ""])
def test_without_a_given_id_one_is_made_up(nothing):
    made = Identity.make(nothing)
    assert made.given is None
    assert str(os.getpid()) in made.process_id


@given(st.text())
def test_any_text_becomes_a_field_name_of_limited_length(text):
    assert FIELD_NAME.fullmatch(Identity.make(text).process_id)
    assert len(sanitize(text)) <= 100


def test_labels_come_from_arguments_then_the_environment_and_host_is_always_there(monkeypatch):
    monkeypatch.setenv("DIAGNOSE_SERVICE", "from-env")
    monkeypatch.setenv("DIAGNOSE_ENV", "prod")
    monkeypatch.setenv("DIAGNOSE_VERSION", "")
    made = Identity.make(labels={"service": "web", "env": None, "region": "eu", "shard": 3})
    assert made.labels == {
        "host": socket.gethostname(),
        "service": "web",
        "env": "prod",
        "region": "eu",
        "shard": "3",
    }


def test_a_child_has_an_id_of_its_own_and_the_same_labels(monkeypatch):
    made_up, chosen = Identity.make(labels={"service": "web"}), Identity.make("web.1")
    monkeypatch.setattr(os, "getpid", lambda: 4711)
    monkeypatch.setattr(socket, "gethostname", lambda: "h")
    child = made_up.for_child()
    assert child.process_id.startswith("h-4711-")
    assert child.labels == made_up.labels
    grandchild = chosen.for_child().for_child()
    assert re.fullmatch("web_1-4711-[0-9a-z]+", grandchild.process_id)


# --- what the environment says ------------------------------------------------------------------


def test_without_anything_around_there_are_no_labels():
    assert identity.labels_around() == {}


def test_labels_of_opentelemetry_and_datadog_are_taken(monkeypatch):
    attributes = "service.name=cart, service.version=1.2,deployment.environment=prod,x"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", attributes)
    assert identity.labels_around() == {"service": "cart", "version": "1.2", "env": "prod"}
    monkeypatch.setenv("DD_SERVICE", "dog")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "otel")
    monkeypatch.setenv("DIAGNOSE_ENV", "staging")
    found = identity.labels_around()
    assert (found["service"], found["env"]) == ("otel", "staging")


@pytest.mark.parametrize(
    ("pod", "service"),
    [
        ("cart-web-7d9f8b6c5-x2x4z", "cart-web"),
        ("cart-db-0", "cart-db"),
        ("node-agent-x2x4z", "node-agent"),
        ("cart", None),
        ("cart-web", None),
    ],
)
def test_a_pod_is_named_for_its_service(monkeypatch, pod, service):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("HOSTNAME", pod)
    found = identity.labels_around()
    assert (found["pod"], found.get("service")) == (pod, service)
    monkeypatch.setenv("DIAGNOSE_SERVICE", "mine")
    assert identity.labels_around()["service"] == "mine"


@pytest.mark.parametrize(
    ("group", "service"),
    [
        ("0::/system.slice/cart-web.service\n", "cart-web"),
        ("0::/system.slice/system-cart.slice/cart@3.service\n", "cart"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/cart.service\n", "cart"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope\n", None),
        ("0::/\n", None),
    ],
)
def test_a_unit_of_systemd_is_the_service(bare, monkeypatch, group, service):
    bare.write_text(group)
    assert "service" not in identity.labels_around()
    monkeypatch.setenv("INVOCATION_ID", "x")
    assert identity.labels_around().get("service") == service
