"""What is left of memory: the machine's share, or the container's where that is less."""

from pathlib import Path

import pytest

from mfalcon.memory import available_bytes


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       9000 kB\nMemFree:        10 kB\nMemAvailable:   8000 kB\n")
    return path


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
    assert available_bytes(tmp_path / "none", meminfo) == 8000 << 10


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limit", "left"), [("5000000", 3_000_000), ("1000000", 0), ("max", 8000 << 10), (str(2**63 - 4096), 8000 << 10)]
)
def test_a_container_cuts_it(tmp_path: Path, meminfo: Path, version: int, limit: str, left: int) -> None:
    assert available_bytes(container(tmp_path, version, limit), meminfo) == left


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "none", tmp_path / "none") > 1 << 20
