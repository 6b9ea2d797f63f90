"""What is left of memory: the machine's share, or the container's where that is less."""

from pathlib import Path

import pytest

from mfalcon.cgroup import Cgroups
from mfalcon.memory import available_bytes, budget_of_states


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       9000 kB\nMemFree:        10 kB\nMemAvailable:   8000 kB\n")
    return path


def alone(root: Path) -> Cgroups:
    """Control groups of which we are in the root."""
    return Cgroups(root, root / "no-membership")


def container(root: Path, version: int, limit: str) -> Path:
    """A cgroup that has taken 3,000,000 bytes, a million of them the page cache's."""
    names = ("memory.max", "memory.current", "memory.stat", "inactive_file")
    if version == 1:
        names = (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        )
    for name, content in zip(names[:3], (limit, "3000000", f"anon 5\n{names[3]} 1000000\n"), strict=True):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def test_no_container(tmp_path: Path, meminfo: Path) -> None:
    assert available_bytes(alone(tmp_path / "none"), meminfo) == 8000 << 10


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limit", "left"), [("5000000", 3_000_000), ("1000000", 0), ("max", 8000 << 10), (str(2**63 - 4096), 8000 << 10)]
)
def test_a_container_cuts_it(tmp_path: Path, meminfo: Path, version: int, limit: str, left: int) -> None:
    assert available_bytes(alone(container(tmp_path, version, limit)), meminfo) == left


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert available_bytes(alone(tmp_path / "none"), tmp_path / "none") > 1 << 20


@pytest.mark.parametrize(("of_parent", "left"), [("max", 3_000_000), ("4000000", 2_000_000)])
def test_limits_of_the_groups_around_ours_hold_too(tmp_path: Path, meminfo: Path, of_parent: str, left: int) -> None:
    container(tmp_path, 2, "max")
    (tmp_path / "pods" / "ours").mkdir(parents=True)
    container(tmp_path / "pods", 2, of_parent)
    container(tmp_path / "pods" / "ours", 2, "5000000")
    membership = tmp_path / "membership"
    membership.write_text("0::/pods/ours\n")
    assert available_bytes(Cgroups(tmp_path, membership), meminfo) == left


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("limit", "budget"), [("max", 77), ("5000000", 1_000_000), ("3500000", 250_000), ("9", 0)])
def test_states_get_half_of_what_a_container_leaves(
    tmp_path: Path, meminfo: Path, version: int, limit: str, budget: int
) -> None:
    set_aside = 1_000_000
    assert budget_of_states(set_aside, 77, alone(container(tmp_path, version, limit)), meminfo) == budget


def test_states_get_no_more_than_the_machine_has(tmp_path: Path, meminfo: Path) -> None:
    assert budget_of_states(0, 77, alone(container(tmp_path, 2, str(1 << 40))), meminfo) == 4000 << 10
