"""How many cores are ours: what the scheduler lets us run on, cut by a container's CPU limit.

More threads than cores is not a little slower but ruinous: barriers between operators collapse.
"""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def owned_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may keep busy, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(cgroup)
    return max(1, min(cores, math.floor(quota))) if quota else cores


def _cpu_quota(cgroup: Path) -> float | None:
    """CPUs of a cgroup v2 or v1 limit, None where there is none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
