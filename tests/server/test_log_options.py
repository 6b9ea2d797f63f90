"""What the settings make of the event log: its place, what an acknowledgement is worth, its bounds."""

import logging
import os
from pathlib import Path

import pytest

from mfalcon.cgroup import Cgroups
from mfalcon.history.file_log import FileLogOptions
from server.addresses import Addresses
from server.banner import of_settings
from server.config import ServerConfig, load_config
from server.options import file_options, log_budget, redis_options


def config(**flags: object) -> ServerConfig:
    return load_config(None, {"checkpoint": "c", **flags})


@pytest.mark.parametrize(
    ("flags", "place", "durability"),
    [
        ({}, "memory", "memory"),
        ({"redis_url": "redis://h"}, "redis", "memory"),
        ({"log_dir": "d"}, "file", "fsync"),
        ({"log_dir": "d", "append_durability": "memory"}, "file", "memory"),
        ({"log_dir": "d", "event_log": "file"}, "file", "fsync"),
        ({"redis_url": "redis://h", "event_log": "memory"}, "memory", "memory"),
        ({"redis_url": "redis://h", "event_log": "file", "log_dir": "d"}, "file", "fsync"),
        ({"redis_url": "redis://h", "event_log": "redis"}, "redis", "memory"),
        ({"redis_url": "redis://h", "append_durability": "fsync"}, "redis", "fsync"),
        ({"redis_url": "redis://h", "append_durability": "replica"}, "redis", "replica"),
    ],
)
def test_the_log_has_one_place(flags: dict[str, object], place: str, durability: str) -> None:
    given = config(**flags)
    assert (given.log_place, given.durability) == (place, durability)
    options = file_options(given)
    assert (options is not None) == (place == "file")
    redis = redis_options(given)
    assert (redis is not None and redis.holds_log) == (place == "redis")
    lines = "\n".join(of_settings(given, None, Addresses("g", "h")))
    survives = {"memory": "as Redis does by itself", "fsync": "on its disk", "replica": "by a replica of it"}
    said = {
        "memory": "in this process",
        "file": "event log: in d; what is acknowledged survives",
        "redis": f"event log: in Redis, what is acknowledged is kept {survives[durability]}; ",
    }
    assert said[place] in lines


def test_file_settings_reach_their_place() -> None:
    given = config(
        log_dir="d", append_durability="memory", log_cache_mb=3, damaged_log="start-empty", quarantine_days=2
    )
    expected = FileLogOptions(Path("d"), "memory", 3 << 20, on_damage="start-empty", quarantine_s=172_800)
    assert file_options(given) == expected


def test_bounds_are_those_asked_for() -> None:
    budget = log_budget(config(log_budget_mb=7, log_max_users=5, log_max_idle_s=3.5, log_when_full="evict"))
    assert (budget.max_bytes, budget.max_users, budget.max_idle_s, budget.when_full) == (7 << 20, 5, 3.5, "evict")
    assert log_budget(config(log_budget_mb=0)).max_bytes == 0


def test_bounds_of_memory_come_of_the_containers_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "memory.max").write_text(f"{512 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{112 << 20}\n")
    (tmp_path / "memory.stat").write_text("inactive_file 0\n")
    with caplog.at_level(logging.INFO):
        budget = log_budget(config(), Cgroups(tmp_path, tmp_path / "none"))
    assert budget.max_bytes == 100 << 20
    assert "memory for histories: 100 MiB, then new users: refuse" in caplog.text


def test_bounds_of_a_file_come_of_its_disk(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    budget = log_budget(config(log_dir=tmp_path / "not" / "yet"))
    assert 0.7 * free < budget.max_bytes < 0.9 * free
