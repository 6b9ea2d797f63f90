"""A real Prometheus scrapes a real server under load, and evaluates what scales it, the alerts and the dashboard."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from loadtest.balance.group import group
from loadtest.bench.some_checkpoint import some_checkpoint
from loadtest.faults.server_process import ServerProcess
from mfalcon.models.manifest import load_items
from mfalcon_client import Client, ClientError
from tests.deploy.manifests import ROOT, read
from tests.deploy.prometheus import PATIENCE_S, prometheus

CALLERS = 6
SELDOM = {
    *("mfalcon_redis_errors_total", "mfalcon_log_reads_total", "mfalcon_unanswered_total", "mfalcon_partial_total"),
    *("mfalcon_affinity_mismatch_total", "mfalcon_reranks_total", "mfalcon_merges_total", "mfalcon_log_budget_bytes"),
    *("mfalcon_write_behind_dropped_total", "mfalcon_frontend_restarts_total", "mfalcon_redis_breaker_open"),
    "mfalcon_state_decisions_total",
}
"""Their panels may be empty while all is well."""


@contextmanager
def load(server: ServerProcess, checkpoint: Path) -> Iterator[None]:
    """Callers in a closed loop, more than the device can have at once."""
    items = np.resize(load_items(checkpoint).item_id, 2_048)
    stop = threading.Event()

    def ask(number: int) -> None:
        with Client(server.grpc) as client:
            while not stop.is_set():
                try:
                    client.rank(f"user {number}", items, timeout_s=10)
                except ClientError:  # refused or late: that is what load is for
                    time.sleep(0.1)

    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(ask, number) for number in range(CALLERS)]
        try:
            yield
        finally:
            stop.set()
    for caller in callers:
        caller.result()


def panels() -> Iterator[str]:
    """The dashboard's queries, with Grafana's variables filled in."""
    for panel in json.loads((ROOT.parent / "grafana/dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"].replace("$__rate_interval", "1m")
            yield expr.replace("$replica", ".*").replace("$model", ".*")


def adapted() -> Iterator[str]:
    """What prometheus-adapter asks of a pod."""
    for rule in read("components/hpa/adapter.yaml")[0]["rules"]["custom"]:
        of_pod = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
        yield of_pod.replace("<<.LabelMatchers>>", 'namespace="mfalcon",pod="mfalcon-0"')


@pytest.mark.thorough
def test_the_queries_have_answers_under_load(tmp_path: Path) -> None:
    with (
        some_checkpoint(None) as checkpoint,
        group(checkpoint, 1) as running,
        prometheus(tmp_path, running.replicas[0].http) as asked,
        load(running.replicas[0], checkpoint),
    ):
        triggers = read("components/keda/scaledobject.yaml")[0]["spec"]["triggers"]
        queue_ms, busy = (asked.until(one["metadata"]["query"], 0) for one in triggers)
        # Steps of a device follow each other. (A rate is extrapolated to its window's ends, hence the margin.)
        assert busy < 1.2
        queue_s, of_pod = (asked.until(query, 0) for query in adapted())
        print(f"queue {queue_ms:.1f} ms by KEDA, {queue_s:.4f} s by the adapter; busy {busy:.2f} and {of_pod:.2f}")
        rules = [rule for one in asked.ask("rules")["groups"] for rule in one["rules"]]
        assert rules
        assert {rule["health"] for rule in rules} == {"ok"}
        firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
        assert not {"MfalconDown", "MfalconInternalErrors", "MfalconRedisDamaged"} & firing
        often = [
            query
            for query in panels()
            if not ("code!~" in query or "append_events" in query or SELDOM & set(re.findall(r"mfalcon_\w+", query)))
        ]
        give_up = time.monotonic() + PATIENCE_S
        while missing := [query for query in often if not asked.values(f"count({query})")]:
            assert time.monotonic() < give_up, missing
            time.sleep(1)
        print(f"{len(often)} queries of the dashboard have answers")
