"""Cores that are ours: affinity, cut by the CPU limit of either cgroup version."""

import os
from pathlib import Path

import pytest

from mfalcon.cgroup import Cgroups
from mfalcon.cores import owned_cores

V2 = "0::/pods/ours\n"
V1 = "4:memory:/\n1:cpu,cpuacct:/pods/ours\n"


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("", {}, 8),
        ("", {"cpu.max": "max 100000\n"}, 8),
        ("", {"cpu.max": "250000 100000\n"}, 2),
        ("", {"cpu.max": "50000 100000\n"}, 1),
        ("", {"cpu.max": "1600000 100000\n"}, 8),
        ("", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        # Our group lies below the root that we see: each limit on the way holds.
        (V2, {"pods/ours/cpu.max": "200000 100000\n"}, 2),
        (V2, {"pods/cpu.max": "300000 100000\n", "pods/ours/cpu.max": "max 100000\n"}, 3),
        (V2, {"pods/others/cpu.max": "100000 100000\n"}, 8),
        (V1, {"cpu/pods/ours/cpu.cfs_quota_us": "200000\n", "cpu/pods/ours/cpu.cfs_period_us": "100000\n"}, 2),
        # A container of version 1 sees its own group as the root, and is told a path that is the host's.
        (V1, {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ("nonsense\n", {"cpu.max": "200000 100000\n"}, 2),
    ],
)
def test_limits(tmp_path: Path, membership: str, files: dict[str, str], cores: int) -> None:
    (tmp_path / "membership").write_text(membership)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(content)
    assert owned_cores(Cgroups(tmp_path, tmp_path / "membership")) == cores
