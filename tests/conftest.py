"""Fixtures and settings of the whole suite: the same examples on every run, torch keeps to one thread, and Triton's
kernels run in its interpreter where there is no CUDA device.
"""

import dataclasses
import gc
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from hypothesis import settings

from tests.real_data import ml100k, ml100k_files
from tests.redis_fixtures import own_redis, redis_cluster, redis_server, session_redis_cluster, session_redis_server

__all__ = [
    "ml100k",
    "ml100k_files",
    "own_redis",
    "redis_cluster",
    "redis_server",
    "session_redis_cluster",
    "session_redis_server",
]

# Before torch is imported, and with it OpenMP. Tiny tensors on busy cores are 20x slower on two; threads that wait by
# spinning, as `mfalcon` has them not, took nine tenths of the time of tests that compute with two.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

gc.disable()  # until all tests are collected: what lives by then stays, and to look at it again and again takes seconds
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
collect_ignore_glob = [] if find_spec("triton") else ["kernels/test_gpu_*.py"]  # there is none but on Linux

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("fixed")


def pytest_collection_finish() -> None:
    """Neither the tests' own collections of garbage nor Python's look at what stays until the end."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def few_programs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter a program costs milliseconds, however many rows it has: `norm_gate` takes many, as it does on
    a GPU for many rows; and sums of places are not watched for an overflow. tests/kernels has all that.
    """
    if "kernels.gpu.norms" not in sys.modules or "TRITON_INTERPRET" not in os.environ:
        return
    if "tests/kernels/" not in request.node.nodeid:
        from triton.runtime.interpreter import interpreter_builder  # noqa: PLC0415 (it needs triton)

        from tests.launches import compiled  # noqa: PLC0415 (it needs triton)

        compiled(90)  # kept: as production launches them
        monkeypatch.setattr("kernels.gpu.norms.FEW_ROWS", 0)
        options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
        monkeypatch.setattr(interpreter_builder, "options", options)


@pytest.fixture(autouse=True)
def only_what_is_compiled(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test of the server launches a kernel with choices that `kernels.gpu.aot` does not compile: what this names
    lacks a case in `kernels/gpu/aot_cases.py`. Tests of the ops themselves may try anything.
    """
    if "triton" not in sys.modules or "TRITON_INTERPRET" not in os.environ or "tests/kernels/" in request.node.nodeid:
        yield
        return
    from tests.launches import Launch, compiled, in_production, watched  # noqa: PLC0415 (it needs triton)

    seen: set[Launch] = set()
    with watched(seen.add):
        yield
    if seen:
        missing = {launch for small in seen for launch in in_production(small)} - compiled(90)
        assert not missing, f"launched, but compiled by no case: {missing}"
