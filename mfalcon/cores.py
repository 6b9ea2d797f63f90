"""How many cores are ours: what the scheduler lets us run on, cut by a container's CPU limit.

More threads than cores is not a little slower but ruinous: barriers between operators collapse.
"""

import math
import os

from mfalcon.cgroup import Cgroups


def owned_cores(cgroups: Cgroups = Cgroups()) -> int:  # noqa: B008 (it is frozen)
    """Cores that this process may keep busy, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroups.cpus()
    return max(1, min(cores, math.floor(quota))) if quota is not None else cores
