"""The engine's tests run twice: on the CPU's backend, and on Triton's in its interpreter as if the CPU were a GPU, with
a device pool in front of the host's.
"""

import threading

import numpy as np
import pytest

import mfalcon.engine.engine
from mfalcon.backends.choice import AUTO, TRITON
from mfalcon.backends.select import PoolBudget, ServedModel, serve
from mfalcon.models.base import Ranker
from mfalcon.types import CacheSource
from tests.device import needs_interpreter
from tests.engine.replicas import always_fetch, replica

__all__ = ["always_fetch", "replica"]

DEVICES = ("cpu", pytest.param("triton", marks=needs_interpreter))


QUICK = (
    "test_what_one_replica_encoded_another_fetches[triton-dfgr]",
    "test_deletion_reaches_every_tier_and_replica[triton]",
    "test_lost_and_spoilt_chunks_shorten_the_state[triton]",
    "test_signed_states[triton]",
)
"""Of the tests with Redis in the interpreter, those that always run; `make thorough` runs all: minutes."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before the markers are looked at."""
    for item in items:
        if "engine/test_redis_" in item.nodeid and "triton" in item.name and item.name not in QUICK:
            item.add_marker(pytest.mark.thorough)


@pytest.fixture(params=DEVICES)
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CacheSource:
    """Engines of this test compute on a device; the tier that their states are found in."""
    if request.param == "cpu":
        return CacheSource.HOST
    compute_on_triton(monkeypatch)
    return CacheSource.GPU


def compute_on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have engines compute in Triton's interpreter, in small shapes."""
    one_at_a_time(monkeypatch)
    monkeypatch.setattr(mfalcon.engine.ranker, "serve_any", _serve_on_triton)
    monkeypatch.setattr(mfalcon.engine.ranker, "DEVICE_MICROBATCH", 32)
    for slow in ("measure_encoding", "measure_scoring", "probe"):  # seconds each
        monkeypatch.setattr(mfalcon.engine.ranker, slow, _nothing)
    monkeypatch.setattr("mfalcon.backends.triton._SHAPE_PAGES", 8)
    monkeypatch.setattr("mfalcon.backends.triton._SHAPE_USERS", 4)


def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter changes triton.language while a kernel runs: engines that live at once must take turns."""
    from triton.runtime.interpreter import GridExecutor  # noqa: PLC0415 (triton is an extra)

    right, turn = GridExecutor.__call__, threading.Lock()

    def call(self: GridExecutor, *args: object, **options: object) -> None:
        with turn, np.errstate(all="ignore"):  # rows that only fill up a shape hold anything
            right(self, *args, **options)

    monkeypatch.setattr(GridExecutor, "__call__", call)


def _nothing(*_: object) -> None:
    """The interpreter's speed tells nothing."""


def _serve_on_triton(
    model: Ranker, backend: str, budget: PoolBudget, kv_dtype: str, predecessor: ServedModel | None
) -> ServedModel:
    return serve(model, TRITON if backend == AUTO else backend, budget, kv_dtype, predecessor)
