"""Warnings that serving a hit gives rise to reach nobody; those of the program do."""

from __future__ import annotations

import contextlib
import io
import itertools
import signal
import subprocess
import sys
import threading
import warnings

import pytest
from stage import Stage, attached, probed

from diagnose import HistogramInstrument, LogInstrument
from diagnose.instruments import ProbeTestInstrument

SOURCE = """\
import warnings

def noisy(x, category=UserWarning, level=1):
    warnings.warn(f"number {x}", category, level)
    return x

class Noisy:
    def __init__(self, x): self.x = x
    def __float__(self): return float(noisy(self.x))
    def __str__(self): return str(noisy(self.x))
    def __bool__(self): return bool(noisy(self.x))
    @property
    def size(self): return noisy(self.x)

def explicit(x):
    warnings.warn_explicit(f"number {x}", UserWarning, "elsewhere.py", 7)
    return x

def target(x, big=Noisy):
    made = big(x)
    return x

def quiet():
    return 1
"""


class Fires(ProbeTestInstrument):
    def fire(self, _globals, _locals):
        _globals["noisy"](_locals["x"])


class Acts(ProbeTestInstrument):
    acts = True

    def act(self, value, names):
        warnings.warn("acting", UserWarning, stacklevel=1)


class Checks(ProbeTestInstrument):
    def check_call(self, probe, /, *args, **kwargs):
        warnings.warn("checked", UserWarning, stacklevel=1)
        return True


class Fails(Exception):
    def __str__(self):
        warnings.warn("shown", UserWarning, stacklevel=1)
        return "failed"


class Told(ProbeTestInstrument):
    def __init__(self, *given):
        super().__init__(*given)
        self.told = threading.Event()

    def handle_error(self, probe):
        super().handle_error(probe)
        self.told.set()


def _fail():
    raise Fails


MADE = {
    "a call": lambda event: ProbeTestInstrument("k", "noisy(x)", event),
    "a call one up": lambda event: ProbeTestInstrument("k", "noisy(x, level=2)", event),
    "a call two up": lambda event: ProbeTestInstrument("k", "noisy(x, level=3)", event),
    "a deprecation": lambda event: ProbeTestInstrument("k", "noisy(x, FutureWarning)", event),
    "explicit": lambda event: ProbeTestInstrument("k", "explicit(x)", event),
    "a property": lambda event: ProbeTestInstrument("k", "Noisy(x).size", event),
    "a number": lambda event: HistogramInstrument("k", "Noisy(x)", event),
    "a text": lambda event: HistogramInstrument(
        "k", "1", event, custom={"tags": "{'a': Noisy(x)}"}
    ),
    "a condition": lambda event: ProbeTestInstrument("k", "1", event, when="Noisy(x)"),
    "syntax": lambda event: ProbeTestInstrument("k", "eval('1 is 1')", event),
    "an error": lambda event: Told("k", "fail()", event),
    "fire": lambda event: Fires("k", "1", event),
    "act": lambda event: Acts("k", "1", event),
    "check_call": lambda event: Checks("k", "1", event),
}
EVENTS = ["call", "return", "end", "line:+2"]
FILTERS = ["default", "always", "once", "module", "error"]
COMBINED = [
    (make, event)
    for make, event in itertools.product(MADE, EVENTS)
    if make != "act" or event in {"call", "return"}
]


@pytest.fixture
def shop():
    with Stage() as stage:
        module = stage.script(SOURCE)
        module.fail = _fail
        yield module


@contextlib.contextmanager
def served(shop, make, event):
    instrument = MADE[make](event)
    with attached(f"{shop.__name__}.target", instrument):
        yield instrument
        assert make != "an error" or instrument.told.wait(30)
    assert instrument.status.hits or instrument.status.state == "error"


def own_warnings(shop, action):
    """What the program's own same warnings are, of each place."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter(action)
        found = []
        for function in (shop.noisy, shop.explicit):
            try:
                function(3)
            except UserWarning as error:
                found.append(str(error))
        return found + [(str(each.message), each.lineno) for each in seen]


@pytest.mark.parametrize(("make", "event"), COMBINED)
@pytest.mark.parametrize("action", FILTERS)
def test_a_program_sees_no_warning_of_what_serves_a_hit(shop, make, event, action):
    errors = io.StringIO()
    bare = own_warnings(shop, action)
    with warnings.catch_warnings(record=True) as seen, contextlib.redirect_stderr(errors):
        warnings.simplefilter(action)
        with served(shop, make, event):
            assert [shop.target(3, lambda x: x) for _ in range(3)] == [3, 3, 3]
    assert not [str(each) for each in seen]
    assert not errors.getvalue()
    assert own_warnings(shop, action) == bare


@pytest.mark.parametrize("action", ["default", "once", "module"])
@pytest.mark.parametrize("make", ["a call", "explicit", "a property", "a number"])
def test_the_programs_own_same_warning_is_shown_after_a_hits(shop, make, action):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter(action)
        with served(shop, make, "call"):
            shop.target(3, lambda x: x)
            assert not seen
            shop.noisy(3)
            shop.noisy(3)
            assert [str(each.message) for each in seen] == ["number 3"]
            shop.target(3, lambda x: x)
            shop.noisy(3)
            assert [str(each.message) for each in seen] == ["number 3"]


def test_a_replaced_showwarning_is_not_called(shop, monkeypatch):
    shown = []
    with served(shop, "a call", "return"), warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *given, **_: shown.append(given))
        shop.target(3)
        assert not shown
        shop.noisy(4)
        assert len(shown) == 1


def test_the_programs_own_warnings_come_as_before_from_all_threads(shop):
    instrument = ProbeTestInstrument("k", "noisy(x)", "call")
    counts = []
    begun = threading.Barrier(4)

    def run():
        begun.wait(30)
        for number in range(200):
            shop.target(number)
            shop.noisy(-1)
        counts.append(1)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with attached(f"{shop.__name__}.target", instrument):
            threads = [threading.Thread(target=run) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
    assert len(counts) == 4
    assert [str(each.message) for each in seen] == ["number -1"] * 800


def test_a_signal_handler_that_runs_amid_a_hit_warns_the_program(shop):
    shop.strike = lambda: signal.raise_signal(signal.SIGUSR1)
    handled = []

    def handle(number, frame):
        handled.append(shop.quiet())
        shop.noisy(5)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with (
                probed(f"{shop.__name__}.target", "[strike(), noisy(x)]") as outer,
                probed(f"{shop.__name__}.quiet") as inner,
            ):
                shop.target(3)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == [1]
    assert [str(each.message) for each in seen] == ["number 5"]
    assert outer.status.hits == 1
    assert inner.status.suppressed == {"reentrant": 1}


def test_a_resource_warning_about_an_object_reaches_the_program(shop):
    class Leaky:
        def __del__(self):
            warnings.warn("left open", ResourceWarning, stacklevel=1, source=self)

    shop.kept = [Leaky()]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with probed(f"{shop.__name__}.target", "kept.clear()"):
            shop.target(3)
    assert [str(each.message) for each in seen] == ["left open"]


def test_what_an_application_does_besides_hits_may_warn(shop):
    class Warns(LogInstrument):
        def attached(self):
            warnings.warn("attached", UserWarning, stacklevel=1)

        def detached(self):
            warnings.warn("detached", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with attached(f"{shop.__name__}.target", Warns("k", "x", "call")):
            pass
    assert [str(each.message) for each in seen] == ["attached", "detached"]


def test_under_the_filter_error_a_warning_is_the_instruments_error(shop):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with served(shop, "a call", "call") as instrument:
            assert shop.target(3) == 3
            assert instrument.status.code == "runtime-error"
            assert "UserWarning: number 3" in instrument.status.error


def test_the_module_of_warnings_is_as_it_was_once_nothing_is_probed(shop):
    before = dict(vars(warnings))
    with probed(f"{shop.__name__}.target"), probed(f"{shop.__name__}.quiet"):
        changed = {name for name, thing in vars(warnings).items() if thing is not before[name]}
        assert changed == {"_showwarnmsg"}
    assert dict(vars(warnings)) == before


def test_what_replaced_it_meanwhile_stays(shop, monkeypatch):
    shown = []
    with probed(f"{shop.__name__}.target", "noisy(x)"):
        monkeypatch.setattr(warnings, "_showwarnmsg", shown.append)
    assert warnings._showwarnmsg.__self__ is shown


def test_nothing_is_written_to_standard_error(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import warnings\n"
        "from diagnose import attach_to, LogInstrument\n"
        "def noisy(x):\n    warnings.warn(f'number {x}')\n    return x\n"
        "def target(x):\n    return x\n"
        "probe = attach_to('__main__.target')\n"
        "probe.attach('k', LogInstrument('k', 'noisy(x)', 'call'))\n"
        "target(1)\nnoisy(2)\nnoisy(1)\n"
        "probe.stop()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", script], capture_output=True, text=True, check=True
    )
    assert "= 1" in done.stdout
    found = [line.partition("UserWarning: ")[2] for line in done.stderr.splitlines()]
    assert [line for line in found if line] == ["number 2", "number 1"]
