"""How much memory is left to us: what the machine has available, cut by a container's limit; and when it has ended."""

import errno
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_TORCH_SAYS = ("cannot allocate memory", "can't allocate memory", "out of memory", "cublas_status_alloc_failed")
"""In lower case: what maps a file; the CPU's allocator; the GPU's, CUDA itself, and oneDNN; cuBLAS. All raise
RuntimeError.
"""


def available_bytes(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int:
    """Bytes that this process may still take without another one, or itself, being killed for it."""
    left = _of_machine(meminfo)
    for limit, used, stat, reclaimable in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            taken = int((cgroup / used).read_text()) - _counter(cgroup / stat, reclaimable)
            left = min(left, max(0, int((cgroup / limit).read_text()) - taken))
        except (OSError, ValueError):  # no such cgroup, or the limit is "max"
            continue
    return left


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
        return _counter(meminfo, "MemAvailable:") << 10
    except (OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _counter(path: Path, name: str) -> int:
    """The number behind a name in a file of lines `name number`. Raises ValueError if there is none."""
    for line in path.read_text().splitlines():
        words = line.split()
        if words[:1] == [name]:
            return int(words[1])
    raise ValueError(f"{path} has no {name}")
