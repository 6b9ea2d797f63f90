"""Writers on a real Redis under faults: the judge finds nothing wrong, and finds it if a log were not right."""

import dataclasses
import math
import threading

import pytest

from loadtest.faults.append_faults import HOMES, Faults, Home
from loadtest.faults.append_run import RunOptions, run
from loadtest.faults.append_writers import WriterOptions
from mfalcon.cli.bench_appends import page
from mfalcon.engine.histories import Histories
from mfalcon.errors import ConfigError
from mfalcon.history.durability import Durability
from mfalcon.types import Append, Appended

QUICK = RunOptions(seconds=4.0, fault_gap_s=0.7, writers=WriterOptions(users=2, pause_s=0.03))


async def test_a_link_that_stalls_and_a_server_that_is_killed() -> None:
    report = await run("link", QUICK)
    assert report.wrong == ()
    assert report.lost == 0 and sum(report.faults.values()) >= 2
    assert report.operations["append ok"] > 5 and report.operations["read ok"] > 2  # beside much other work
    assert page([report])[0].rows[0][-1] == "0"


@pytest.mark.parametrize("breaks", ["loses", "doubles"])
async def test_a_log_that_is_not_right_is_found(breaks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each seventh append is acknowledged and not done, or done twice."""
    right, calls = Histories.append, 0

    async def append(self: Histories, user_id: str, append: Append, deadline: float | None) -> Appended:
        nonlocal calls
        calls += 1
        told = await right(self, user_id, append, deadline)
        if calls % 7 == 0 and breaks == "doubles":
            await right(self, user_id, Append(append.events), deadline)
        if calls % 7 == 0 and breaks == "loses":
            return dataclasses.replace(told, version=bytes(16))
        return told

    monkeypatch.setattr(Histories, "append", append)
    assert (await run("link", dataclasses.replace(QUICK, seconds=1.0, fault_gap_s=0.0))).wrong


async def test_what_is_recorded_is_judged_though_the_run_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Histories.close

    async def close(self: Histories) -> None:
        await right(self)
        raise ConfigError("not within 20 s")

    monkeypatch.setattr(Histories, "close", close)
    report = await run("link", dataclasses.replace(QUICK, seconds=0.5, fault_gap_s=0.0))
    assert report.wrong == ("the run ended early: ConfigError: not within 20 s",)
    assert report.operations["append ok"] and report.operations["read ok"]


@pytest.mark.parametrize("is_mended", [True, False])
def test_a_fault_that_is_not_lifted_at_once(is_mended: bool) -> None:
    stop, tries = threading.Event(), 0

    def break_it(_: float) -> None:
        stop.set()
        raise ConfigError("not within 20 s")

    def mend() -> None:
        nonlocal tries
        tries += 1
        if tries == 1 or not is_mended:
            raise ConfigError("not yet")

    faults = Faults("", {"break_it": break_it}, mend, fails_over=False, mend_s=60.0 if is_mended else 1.5)
    faults.inject(stop, 0.01, 0)
    assert faults.trouble[:2] == ["break_it: not within 20 s", "mending: not yet"]
    ((began, ended),) = faults.times
    assert (ended < math.inf) == is_mended and ended - began >= 1.0
    assert faults.done == {"break_it": 1}


@pytest.mark.thorough
@pytest.mark.parametrize("late_share", [0.0, 0.2])
@pytest.mark.parametrize(
    ("home", "durability"), [*((home, "memory") for home in HOMES), ("sentinel", "replica"), ("link", "fsync")]
)
async def test_half_a_minute_in_every_home(home: Home, durability: Durability, late_share: float) -> None:
    writers = WriterOptions(late_share=late_share)
    report = await run(home, RunOptions(seconds=30.0, fault_gap_s=2.0, writers=writers, durability=durability))
    assert report.wrong == ()
    assert (home, durability) == ("sentinel", "memory") or report.lost == report.told_lost == 0
    assert sum(report.faults.values()) >= 2
