"""How long breakpoints take: cycles of blocking and releasing, and waking up.

    python benchmarks/breakpoints.py

Prints a table that is also valid Markdown: medians of several rounds, the lowest and the
highest in brackets. Exit codes: 0; 1 when a goal is missed.
"""

from __future__ import annotations

import asyncio
import platform
import statistics
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from diagnose.breakpoints import Breakpoint  # noqa: E402

CYCLES, ROUNDS = 1_000, 5
CYCLES_GOAL_SECONDS, WAKE_GOAL_MS = 2.0, 1.0
SOURCE = """
def double(x):
    return x * 2

async def wait(x):
    return x * 2
"""
shop = types.ModuleType("bench_shop")
sys.modules["bench_shop"] = shop
exec(SOURCE, shop.__dict__)


def own_breakpoints():
    """A breakpoint and a thread for each cycle."""
    for _ in range(CYCLES):
        with Breakpoint("bench_shop.double") as bp:
            bp.start_thread(shop.double, 1)
            bp.wait()
            bp.release()


def one_breakpoint():
    """One breakpoint, and a thread that is stopped again and again."""
    with Breakpoint("bench_shop.double") as bp:
        bp.start_thread(lambda: [shop.double(1) for _ in range(CYCLES)])
        for _ in range(CYCLES):
            bp.wait()
            bp.release()


def tasks():
    """The same with tasks."""

    async def run():
        async with Breakpoint("bench_shop.wait") as bp:
            for _ in range(CYCLES):
                task = bp.start_task(shop.wait, 1)
                await bp.wait()
                bp.release()
                await task

    asyncio.run(run())


def wake_ups():
    """Milliseconds from the hit to the end of wait(), and from release() to the thread's next step."""
    woken, released = [], []
    with Breakpoint("bench_shop.double") as bp:
        for _ in range(CYCLES):
            moments = []

            def work(moments=moments):
                moments.append(time.perf_counter())
                shop.double(1)
                moments.append(time.perf_counter())

            thread = bp.start_thread(work)
            bp.wait()
            woken.append((time.perf_counter() - moments[0]) * 1e3)
            let_go = time.perf_counter()
            bp.release()
            thread.join()
            released.append((moments[1] - let_go) * 1e3)
    return woken, released


def seconds(cycles):
    """Of several rounds."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        cycles()
        times.append(time.perf_counter() - began)
    return times


def main():
    """Measure, and print the table."""
    print(f"| Python {platform.python_version()} | median | lowest to highest | goal |")
    print("|---|--:|--:|--:|")
    is_met = True
    for cycles in (own_breakpoints, one_breakpoint, tasks):
        times = seconds(cycles)
        is_met &= statistics.median(times) < CYCLES_GOAL_SECONDS
        what = f"{CYCLES:,} cycles, {cycles.__doc__[:-1].lower()}"
        print(
            f"| {what} | {statistics.median(times):.2f} s | {min(times):.2f} to {max(times):.2f} | "
            f"{CYCLES_GOAL_SECONDS:g} s |"
        )
    for what, times in zip(
        ("from the hit to the end of wait()", "from release() to the thread going on"),
        wake_ups(),
        strict=True,
    ):
        late = sorted(times)[int(len(times) * 0.99)]
        is_met &= statistics.median(times) < WAKE_GOAL_MS
        print(
            f"| {what} | {statistics.median(times):.3f} ms | 99 %: {late:.3f} | {WAKE_GOAL_MS:g} ms |"
        )
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
