"""Metrics of several processes: each family once, sums of all, and no counter that goes back."""

import subprocess
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from mfalcon.metrics.process import count_process
from server.frontends.fleet_metrics import FleetMetrics

ROOT = Path(__file__).parents[3]

FRONT_END = """
import os, sys
from prometheus_client import CollectorRegistry, Counter, Histogram
from server.frontends.fleet_metrics import count_in_files

count_in_files(sys.argv[1], int(sys.argv[2]))
registry = CollectorRegistry()
Counter("requests", "Requests.", ["code"], registry=registry).labels("OK").inc(int(sys.argv[3]))
Histogram("stage_seconds", "Stages.", ["stage"], buckets=(1.0,), registry=registry).labels("reply").observe(0.5)
os.kill(os.getpid(), 9)
"""


def count(directory: Path, number: int, requests: int) -> None:
    """A whole life of a front-end, which is killed."""
    command = [sys.executable, "-c", FRONT_END, str(directory), str(number), str(requests)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -9


def test_counters_are_sums_that_outlive_whoever_counted(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    Counter("reloads", "Reloads.", registry=registry).inc(7)
    Counter("requests", "Requests.", ["code"], registry=registry).labels("OK").inc(10)
    Histogram("stage_seconds", "Stages.", ["stage"], buckets=(1.0,), registry=registry).labels("score").observe(2)
    count_process(registry)
    fleet = FleetMetrics(registry, str(tmp_path), lambda: {0: 1})
    count(tmp_path, 0, 3)
    count(tmp_path, 1, 4)
    count(tmp_path, 0, 5)  # in the place of the first
    text = fleet.text().decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    samples = {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}
    assert samples["requests_total", "OK"] == 22  # those of the engine's process too, in one series
    assert samples["stage_seconds_count", "reply"] == samples["stage_seconds_bucket", "1.0", "reply"] == 3
    assert (samples["stage_seconds_count", "score"], samples["reloads_total",]) == (1, 7)
    for name in ("process_resident_memory_bytes", "process_threads"):
        assert samples[name,] > 0 and samples[name, "0"] > 0
    strict = open_metrics.text_string_to_metric_families(fleet.text(open_metrics=True).decode())
    found = {(one.name, *sorted(one.labels.values())): one.value for family in strict for one in family.samples}
    assert {key: found[key] for key in samples if key[0].startswith(("requests", "stage"))} == {
        key: value for key, value in samples.items() if key[0].startswith(("requests", "stage"))
    }
