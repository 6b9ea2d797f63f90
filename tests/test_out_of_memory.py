"""Allocations that really fail, in a process whose address space is nearly full, are told from other errors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mfalcon.errors import EngineFailure
from mfalcon.memory import is_out_of_memory

ROOT = Path(__file__).parents[1]
SCRIPT = """
import mmap, resource, sys
import numpy as np, torch
from kernels.cpu.check import load
from kernels.cpu.library import FusedUnavailable
from kernels.cpu.stack import FusedStack
from kernels.sample_stack import sample
from mfalcon.memory import is_out_of_memory

torch.set_num_threads(1)
square, known, page = torch.randn(3_000, 3_000), sample(77, 13), 128
targets = torch.randn(200_000, known.config.dim)
linear = torch.nn.functional.linear
attempts = {
    "torch": lambda: torch.empty(1 << 40, dtype=torch.uint8),
    "linear": lambda: [linear(square, square) for _ in range(20)],
    "cast": lambda: [square.double() for _ in range(20)],
    "cat": lambda: torch.cat([square] * 20),
    "numpy": lambda: np.empty(1 << 37),
    "python": lambda: bytearray(1 << 40),
    "list": lambda: square.tolist(),
    "mmap": lambda: mmap.mmap(-1, 1 << 40),
}
try:
    kernel = load()
except FusedUnavailable as error:
    print("no kernel:", error)
else:
    stack = FusedStack(kernel, known.config, known.layers, page)
    memory = torch.zeros(1, stack.page_bytes, dtype=torch.uint8)
    pages = torch.tensor([memory.data_ptr()])
    attempts["kernel"] = lambda: stack.score(pages, 77, targets, known.now, 1, len(targets))
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (120 << 20), resource.RLIM_INFINITY))
for name, attempt in attempts.items():
    try:
        attempt()
        print(name, "did not fail")
    except Exception as error:
        print(name, is_out_of_memory(error), type(error).__name__, str(error)[:100])
"""


def test_every_allocator_that_fails_is_known() -> None:
    """Compiled code answers with an error too: nothing is thrown out of a parallel region, no process aborts."""
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    names = {line.split()[0] for line in told if line.split()[1] == "True"}
    expected = {"torch", "linear", "cast", "cat", "numpy", "python", "list", "mmap"}
    if not told[0].startswith("no kernel"):
        expected |= {"kernel"}
    assert names == expected, done.stdout


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_what_only_other_machines_say(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(28, "No space left on device"),
        ValueError("out of memory"),
        EngineFailure("a step failed"),
    ],
)
def test_other_errors_are_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)
