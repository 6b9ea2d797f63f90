"""Processor sharing in simulated time."""

import pytest
from simpy import Environment

from loadtest.scale.cores import Cores
from loadtest.scale.thread import Doing


def ends(num_cores: float, jobs: list[tuple[float, float]]) -> list[float]:
    """When jobs of (begin, core seconds) end."""
    env = Environment()
    cores = Cores(env, num_cores)
    ended = [0.0] * len(jobs)

    def job(number: int, begin: float, seconds: float) -> Doing:
        yield env.timeout(begin)
        yield cores.run(seconds)
        ended[number] = env.now

    for number, (begin, seconds) in enumerate(jobs):
        env.process(job(number, begin, seconds))
    env.run()
    assert cores.spent_s == pytest.approx(sum(seconds for _, seconds in jobs))
    return ended


def test_a_job_alone_has_one_core() -> None:
    assert ends(4, [(0, 1.0)]) == pytest.approx([1.0])


def test_jobs_share_what_there_is() -> None:
    assert ends(2, [(0, 1.0)] * 4) == pytest.approx([2.0] * 4)


def test_who_comes_later_slows_those_before() -> None:
    # One core: 1 s alone, then two at half speed until the second is done at 3, then the rest of the first alone.
    assert ends(1, [(0, 3.0), (1, 1.0)]) == pytest.approx([4.0, 3.0])


def test_less_than_a_core() -> None:
    assert ends(0.5, [(0, 1.0)]) == pytest.approx([2.0])


def test_nothing_takes_no_time() -> None:
    assert ends(1, [(2, 0.0)]) == pytest.approx([2.0])
