"""What a start takes and says: memory for KV states by the limits, less what is set aside for Redis; a note."""

from pathlib import Path

import pytest

from mfalcon.cgroup import Cgroups
from server.banner import note_of
from server.config import load_config
from server.options import state_bytes

MIB = 1 << 20


def limited(root: Path, limit: str) -> Cgroups:
    """A container that has taken 100 MiB of its limit."""
    for name, content in (("max", limit), ("current", str(100 * MIB)), ("stat", "inactive_file 0")):
        (root / f"memory.{name}").write_text(content)
    return Cgroups(root, root / "no-membership")


@pytest.mark.parametrize(
    ("limit", "settings", "budget"),
    [
        ("max", {}, 1_024),
        (str(1_124 * MIB), {}, 512),
        (str(1_124 * MIB), {"redis_url": "redis://h", "write_behind_mb": 100, "log_cache_mb": 24}, 450),
        (str(1_124 * MIB), {"kv_budget_mb": 7}, 7),
        (str(50 * MIB), {}, 0),
    ],
)
def test_budget(tmp_path: Path, limit: str, settings: dict[str, object], budget: int) -> None:
    config = load_config(None, {"checkpoint": "somewhere", **settings})
    assert state_bytes(config, limited(tmp_path, limit)) == budget * MIB


@pytest.mark.parametrize(
    ("content", "note"),
    [(None, None), (b"", None), (b"mine\x1b[1m \xff\nmore", "mine?[1m \ufffd"), (b"x" * 5_000, "x" * 500)],
)
def test_a_checkpoints_note_is_one_line_of_text(tmp_path: Path, content: bytes | None, note: str | None) -> None:
    if content is not None:
        (tmp_path / "NOTE").write_bytes(content)
    assert note_of(tmp_path) == note
