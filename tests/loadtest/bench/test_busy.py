"""The busy neighbour: works when told, rests otherwise, and never outlives who started it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtest.bench import append as bench_append
from loadtest.bench import score as bench_score
from loadtest.bench.append import AppendOptions
from loadtest.bench.busy import Neighbour, neighbour
from loadtest.bench.peaks import Peaks
from loadtest.bench.score import ScoreOptions

ROOT = Path(__file__).parents[3]


def cpu_ticks(pid: int) -> int:
    """Of a process, in user and kernel mode (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_it_works_when_told_and_is_gone_afterwards() -> None:
    with neighbour() as busy:
        before = cpu_ticks(busy.pid)
        with busy.working():
            while cpu_ticks(busy.pid) < before + 2:
                pass
        rests = cpu_ticks(busy.pid)
        time.sleep(0.3)
        assert cpu_ticks(busy.pid) <= rests + 1  # of thirty
    assert not is_running(busy.pid)


def test_it_is_gone_after_an_error_inside() -> None:
    with pytest.raises(ZeroDivisionError), neighbour() as busy, busy.working():
        raise ZeroDivisionError
    assert busy.ended


def test_a_dead_one_is_an_error_and_no_silence() -> None:
    with pytest.raises(OSError, match=r"busy process|[Bb]roken pipe"), neighbour() as busy:
        busy.kill()
        with busy.working():
            pass
    assert busy.ended


@pytest.mark.parametrize("working", [b"", b"w"])
def test_it_ends_with_its_input(working: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.bench.busy"],
        input=working,
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == working


@pytest.mark.parametrize("bench", [bench_score, bench_append])
def test_a_failed_benchmark_leaves_none_behind(bench: object, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Neighbour] = []

    @contextmanager
    def recorded() -> Iterator[Neighbour]:
        with neighbour() as busy:
            started.append(busy)
            yield busy

    def failing(*_: object) -> None:
        raise RuntimeError("no time")

    monkeypatch.setattr(bench, "probe", lambda _: Peaks(1.0, "", 1.0, "", 1.0, ""))
    monkeypatch.setattr(bench, "neighbour", recorded)
    monkeypatch.setattr(bench, "take_turns", failing)
    with pytest.raises(RuntimeError, match="no time"):
        if bench is bench_score:
            bench_score.run(ScoreOptions(("tiny",), (5,), (3,), ("reference",), busy=True), print)
        else:
            bench_append.run(AppendOptions(("tiny",), (5,), (3,), ("reference",), busy=True), print)
    assert [busy.ended for busy in started] == [True]
