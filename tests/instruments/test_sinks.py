from __future__ import annotations

import io
import logging
import math
import os
import random
import re
import socket
import sys
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnose.sinks import Sink, statsd
from diagnose.sinks.logging import LoggingSink
from diagnose.sinks.statsd import StatsdSink
from diagnose.sinks.stream import StreamSink

DEADLINE_SECONDS = 20


class Server:
    """A UDP socket on 127.0.0.1 that StatsD datagrams are sent to."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(DEADLINE_SECONDS)
        self.port = self.socket.getsockname()[1]
        self.senders = []

    def datagram(self) -> bytes:
        data, sender = self.socket.recvfrom(65536)
        self.senders.append(sender)
        return data

    def lines(self, count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            found += self.datagram().decode().split("\n")
        return found

    def is_empty(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(65536)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            self.socket.settimeout(DEADLINE_SECONDS)


@pytest.fixture
def server():
    one = Server()
    yield one
    one.socket.close()


@pytest.fixture
def sink(server):
    one = StatsdSink(port=server.port)
    yield one
    one.close()


# --- streams and logging ----------------------------------------------------------------------


@pytest.mark.parametrize("made", [StreamSink, LoggingSink, StatsdSink])
def test_each_sink_is_one_and_closes_twice(made):
    one = made()
    assert isinstance(one, Sink)
    one.close()
    one.close()


def test_a_stream_gets_one_line_for_each_batch():
    out = io.StringIO()
    one = StreamSink(out)
    one.histogram("cart.checkout", [3, 0.5, 1], {"tier": "gold"})
    one.counter("cart.items", 2, {})
    assert out.getvalue() == (
        "Metric (cart.checkout)[tags={'tier': 'gold'}] count=3 min=0.5 mean=1.5 max=3\n"
        "Metric (cart.items)[tags={}] total=2\n"
    )


def test_a_name_with_a_line_end_gives_one_line_still():
    out = io.StringIO()
    StreamSink(out).counter("two\nlines", 1, {})
    assert out.getvalue().count("\n") == 1


def test_what_is_not_finite_is_counted_apart():
    out = io.StringIO()
    one = StreamSink(out)
    one.histogram("x", [math.nan, 1e308, math.inf, 10**400, 1e308], {})
    one.histogram("x", [math.nan], {})
    assert out.getvalue() == (
        "Metric (x)[tags={}] count=2 min=1e+308 mean=1e+308 max=1e+308 not_finite=3\n"
        "Metric (x)[tags={}] count=0 not_finite=1\n"
    )


def test_the_default_stream_is_what_stderr_is_at_that_time(monkeypatch):
    one = StreamSink()
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    assert one.write("a line\n") == 7
    assert out.getvalue() == "a line\n"
    monkeypatch.setattr(sys, "stderr", None)
    one.write("nobody reads this\n")


def test_metrics_become_log_records(caplog):
    caplog.set_level(logging.INFO)
    one = LoggingSink()
    one.histogram("cart.checkout", [1, 2], {"100%": "s"})
    one.counter("cart.items", 2, {})
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        (
            "diagnose.metrics",
            logging.INFO,
            "Metric (cart.checkout)[tags={'100%': 's'}] count=2 min=1 mean=1.5 max=2",
        ),
        ("diagnose.metrics", logging.INFO, "Metric (cart.items)[tags={}] total=2"),
    ]


def test_written_lines_become_one_record_each(caplog):
    one = LoggingSink(logging.getLogger("shop"), logging.WARNING)
    one.write("Probe (x)[tags={}] = 100 %s\n")
    print("two\nlines", file=one, flush=True)
    one.write("without line end")
    found = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert found == [
        ("shop", "WARNING", "Probe (x)[tags={}] = 100 %s"),
        ("shop", "WARNING", "two\nlines"),
        ("shop", "WARNING", "without line end"),
    ]


# --- StatsD -----------------------------------------------------------------------------------


def test_samples_and_counters_go_out_as_statsd_lines(server, sink):
    sink.histogram("cart.checkout", [1, 0.25, 2.0], {})
    assert server.datagram() == b"cart.checkout:1|h\ncart.checkout:0.25|h\ncart.checkout:2|h"
    sink.counter("cart.items", 3, {})
    assert server.datagram() == b"cart.items:3|c"
    assert (sink.sent, sink.failures, sink.dropped) == (2, 0, 0)


def test_tags_go_out_sorted_in_the_dogstatsd_form(server):
    one = StatsdSink(port=server.port, prefix="shop", tags={"service": "web", "tier": "none"})
    one.counter("cart.items", 1, {"tier": "gold", "empty": "", "b": 2})
    one.counter("cart.items", 1, {"b": 2, "empty": "", "tier": "gold"})
    first = server.datagram()
    assert first == b"shop.cart.items:1|c|#b:2,empty,service:web,tier:gold"
    assert server.datagram() == first
    one.close()


def test_what_would_break_a_line_is_replaced(server, sink):
    sink.counter("a:b|c@d#e,f\ng", 1, {"k:|\n": "http://x|y@z#1,2\r\n", "long": "é" * 500})
    assert server.datagram().decode() == (
        "a_b_c_d_e_f_g:1|c|#k___:http_//x_y_z_1_2__,long:" + "é" * 200
    )
    sink.counter("", 1, {"": "no key"})
    assert server.datagram() == b"_:1|c"
    sink.counter("half \ud800", 1, {})
    assert server.datagram() == b"half ?:1|c"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "1"),
        (-3, "-3"),
        (2**60, "1152921504606846976"),
        (1e22, "10000000000000000000000"),
        (1e-7, "0.0000001"),
        (0.1, "0.1"),
        (-1.5, "-1.5"),
        (5.0, "5"),
        (1 / 3, "0.3333333333333333"),
    ],
)
def test_numbers_have_no_exponent_and_no_needless_fraction(server, sink, value, text):
    sink.counter("x", value, {})
    assert server.datagram().decode() == f"x:{text}|c"


def test_values_that_are_not_finite_are_left_out_and_counted(server, sink):
    sink.histogram("x", [math.nan, 1, math.inf, -math.inf, 10**400], {})
    assert server.datagram() == b"x:1|h"
    sink.counter("x", math.nan, {})
    sink.histogram("x", [math.nan], {})
    sink.counter("last", 1, {})
    assert server.datagram() == b"last:1|c"
    assert sink.dropped == 6


def test_lines_share_datagrams_that_never_exceed_the_limit(server):
    one = StatsdSink(port=server.port, max_datagram_bytes=100)
    one.histogram("cart.checkout", range(50), {"tier": "gold"})
    datagrams = [server.datagram() for _ in range(one.sent)]
    assert [line for each in datagrams for line in each.decode().split("\n")] == [
        f"cart.checkout:{value}|h|#tier:gold" for value in range(50)
    ]
    assert max(map(len, datagrams)) <= 100
    assert len(datagrams) < 50 / 2
    one.histogram("x" * 100, [1, 2], {})
    assert one.dropped == 2
    one.close()


def test_a_line_of_exactly_the_limit_is_sent(server):
    one = StatsdSink(port=server.port, max_datagram_bytes=11)
    one.histogram("a", [1, 2, 3], {})
    one.histogram("abcdefg", [1, 12], {})
    assert [server.datagram() for _ in range(3)] == [b"a:1|h\na:2|h", b"a:3|h", b"abcdefg:1|h"]
    assert one.dropped == 1
    one.close()


def test_a_large_batch_is_sampled_with_its_rate(server):
    one = StatsdSink(port=server.port, max_values_per_flush=100)
    one.histogram("x", range(4000), {"k": "v"})
    lines = server.lines(100)
    assert all(re.fullmatch(r"x:\d+\|h\|@0\.025\|#k:v", line) for line in lines)
    values = [int(line[2 : line.index("|")]) for line in lines]
    assert len(set(values)) == 100
    # Uniform: the chance of no value at all in one quarter is below 1e-12.
    assert set(Counter(value // 1000 for value in values)) == {0, 1, 2, 3}
    one.histogram("x", range(100), {})
    assert "@" not in "".join(server.lines(100))
    one.close()


def test_a_sample_does_not_touch_the_programs_random_numbers(server):
    random.seed(7)
    expected = random.random()
    random.seed(7)
    one = StatsdSink(port=server.port, max_values_per_flush=1)
    one.histogram("x", [1, 2, 3], {})
    assert random.random() == expected
    one.close()


def test_limits_that_make_no_sense_are_refused():
    for name in ("port", "max_datagram_bytes", "max_values_per_flush"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            StatsdSink(**{name: 0})
    with pytest.raises(ValueError, match="port is 65536"):
        StatsdSink(port=65536)


def test_a_server_that_is_away_is_reported_once_and_once_when_it_is_back(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="diagnose.sinks.statsd")
    now = 1000.0
    monkeypatch.setattr(statsd, "_monotonic", lambda: now)
    server = Server()
    one = StatsdSink(port=server.port)
    server.socket.close()
    for _ in range(20):
        one.counter("x", 1, {})
        now += 1
    assert one.failures > 5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "are lost" in caplog.messages[0]
    assert repr(server.port) in caplog.messages[0]

    again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    again.bind(("127.0.0.1", one.port))
    again.settimeout(DEADLINE_SECONDS)
    for _ in range(20):
        one.counter("y", 1, {})
        now += 1
    assert again.recv(100) == b"y:1|c"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "again" in caplog.messages[1]
    again.close()
    one.close()


def test_a_host_that_is_not_known_costs_no_look_up_for_each_packet(monkeypatch, caplog):
    now, asked = 1000.0, []
    monkeypatch.setattr(statsd, "_monotonic", lambda: now)

    def look_up(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    one = StatsdSink("statsd.invalid")
    one.histogram("x", range(5000), {})
    assert asked == ["statsd.invalid"]
    assert one.failures > 1
    now += 10
    one.counter("x", 1, {})
    assert len(asked) == 2
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("host", "port"), [("x" * 70, 1), ("a..b", 1), ("\0", 1)])
def test_an_impossible_address_raises_nothing(host, port, caplog):
    one = StatsdSink(host, port)
    one.counter("x", 1, {})
    assert one.failures == 1
    assert len(caplog.records) == 1
    one.close()


def test_the_host_is_looked_up_once_for_many_packets(server, monkeypatch):
    asked = []
    really = socket.getaddrinfo

    def look_up(*args, **kwargs):
        asked.append(args)
        return really(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    one = StatsdSink("localhost", server.port)
    for _ in range(50):
        one.counter("x", 1, {})
    assert server.lines(50) == ["x:1|c"] * 50
    assert len(asked) == 1
    one.close()


def test_the_socket_is_opened_late_and_again_after_close(server, monkeypatch):
    made = []
    really = socket.socket

    class Noted(really):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(socket, "socket", Noted)
    one = StatsdSink(port=server.port)
    assert made == []
    one.counter("x", 1, {})
    one.counter("x", 2, {})
    assert len(made) == 1
    assert made[0].gettimeout() == 0
    one.close()
    assert made[0].fileno() == -1
    one.counter("x", 3, {})
    assert server.lines(3) == ["x:1|c", "x:2|c", "x:3|c"]
    one.close()


def test_a_full_socket_buffer_loses_datagrams_and_raises_nothing(server, sink, monkeypatch, caplog):
    class Full(socket.socket):
        def send(self, *args):
            raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Full)
        sink.counter("x", 1, {})
    assert (sink.sent, sink.failures) == (0, 1)
    assert len(caplog.records) == 1
    sink.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_sends_from_a_socket_of_its_own(server, sink):
    sink.counter("parent", 1, {})
    assert server.datagram() == b"parent:1|c"
    with sink._lock:  # as if another thread were sending at that time
        child = os.fork()
        if child == 0:
            try:
                sink.counter("child", 1, {})
                os._exit(0 if sink.sent == 1 else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert server.datagram() == b"child:1|c"
    sink.counter("parent", 2, {})
    assert server.datagram() == b"parent:2|c"
    first, second, third = server.senders
    assert first == third != second


def test_many_threads_may_send_and_close(server, sink):
    def work(number):
        for value in range(200):
            sink.counter(f"t{number}", value, {})
            if value % 50 == 0:
                sink.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    received = []
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert sink.sent + sink.failures == 800
    while len(received) < sink.sent:
        received += server.lines(1)
    assert len(set(received)) == sink.sent > 400
    assert server.is_empty()


TEXT = st.text(max_size=30) | st.text(":|@#,\n\r.éx", max_size=10)


@given(
    name=TEXT,
    values=st.lists(st.floats() | st.integers(), min_size=1, max_size=30),
    tags=st.dictionaries(TEXT, TEXT | st.integers() | st.none(), max_size=4),
    max_datagram_bytes=st.integers(20, 2000),
)
def test_every_line_of_any_metric_reads_back(name, values, tags, max_datagram_bytes):
    sent = []
    one = StatsdSink(max_datagram_bytes=max_datagram_bytes)
    one._send = sent.append
    one.histogram(name, values, tags)
    read = []
    for datagram in sent:
        assert len(datagram) <= max_datagram_bytes
        for line in datagram.decode().split("\n"):
            found = re.fullmatch(
                r"[^:|@#,]+:(-?\d+(?:\.\d+)?)\|h(?:\|#[^|@#,:]+(?::[^|@#,:]+)?"
                r"(?:,[^|@#,:]+(?::[^|@#,:]+)?)*)?",
                line,
            )
            assert found, line
            read.append(float(found[1]))
    assert len(read) + one.dropped == len(values)
    remaining = iter([float(value) for value in values if statsd.is_finite(value)])
    assert all(value in remaining for value in read), "values are changed or out of order"
