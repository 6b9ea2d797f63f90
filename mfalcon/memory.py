"""How much memory is left to us: what the machine has available, cut by a container's limit; and when it has ended."""

import errno
import os
from pathlib import Path

from mfalcon.cgroup import Cgroups, counter

_MEMINFO = Path("/proc/meminfo")
_TORCH_SAYS = ("cannot allocate memory", "can't allocate memory", "out of memory", "cublas_status_alloc_failed")
"""In lower case: what maps a file; the CPU's allocator; the GPU's, CUDA itself, and oneDNN; cuBLAS. All raise
RuntimeError.
"""


def available_bytes(cgroups: Cgroups = Cgroups(), meminfo: Path = _MEMINFO) -> int:  # noqa: B008 (it is frozen)
    """Bytes that this process may still take without another one, or itself, being killed for it."""
    left = cgroups.memory_left()
    return _of_machine(meminfo) if left is None else min(left, _of_machine(meminfo))


def budget_of_states(
    set_aside: int,
    usual: int,
    cgroups: Cgroups = Cgroups(),  # noqa: B008 (it is frozen)
    meminfo: Path = _MEMINFO,
) -> int:
    """Bytes for KV states where nobody says how many: half of what a container's limit leaves, `usual` without one.

    set_aside: of what is left, bytes that are promised to others. The other half is for histories, activations, what
    callers send, and the next checkpoint beside this one.
    """
    if cgroups.memory_left() is None:
        return usual
    return max(0, available_bytes(cgroups, meminfo) - set_aside) // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed: Python's, numpy's and our kernel's MemoryError, torch's on the
    CPU or a GPU, or the system's ENOMEM. What failed may be asked again, in smaller parts or when others have ended.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        text = str(error).lower()
        return any(said in text for said in _TORCH_SAYS)
    return isinstance(error, MemoryError)


def _of_machine(meminfo: Path) -> int:
    try:
        return counter(meminfo, "MemAvailable:") << 10
    except (OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
