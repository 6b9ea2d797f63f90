"""A real Prometheus scrapes a real server under load, and evaluates what scales it, the alerts and the dashboard."""

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from loadtest.balance.group import group
from loadtest.bench.some_checkpoint import some_checkpoint
from loadtest.faults.redis_server import free_port
from loadtest.faults.server_process import ServerProcess
from mfalcon.models.manifest import load_items
from mfalcon_client import Client, ClientError
from tests.deploy.manifests import ROOT, read

CALLERS = 6
PATIENCE_S = 120.0
SELDOM = {"mfalcon_redis_errors_total", "mfalcon_log_reads_total", "mfalcon_unanswered_total"}
"""Their panels may be empty while all is well."""


class Prometheus:
    """A running one, whose rules and scraped job are those of deploy/."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=f"http://{address}/api/v1", timeout=30)

    def close(self) -> None:
        """Ask no more."""
        self._http.close()

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer. Raises httpx.HTTPError."""
        answer = self._http.get(path, params=parameters).raise_for_status().json()
        assert answer["status"] == "success"
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """Those of an instant vector, now."""
        return [float(sample["value"][1]) for sample in self.ask("query", query=query)["result"]]

    def until(self, query: str, least: float) -> float:
        """The only value of a query, once it is above `least`."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                values = self.values(query)
            except httpx.TransportError:  # it starts
                values = []
            if len(values) == 1 and values[0] > least:
                return values[0]
            assert time.monotonic() < give_up, f"{query}: {values}"
            time.sleep(0.5)


@contextmanager
def prometheus(scraped: str, directory: Path) -> Iterator[Prometheus]:
    """One that scrapes an address each second, as a pod of the namespace mfalcon."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")
    labels = {"namespace": "mfalcon", "pod": "mfalcon-0"}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT.parent / "prometheus/rules.yaml")],
        "scrape_configs": [{"job_name": "mfalcon", "static_configs": [{"targets": [scraped], "labels": labels}]}],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
        asked = Prometheus(address)
        try:
            yield asked
        finally:
            asked.close()
            process.terminate()
            process.wait(30)


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
        prometheus(running.replicas[0].http, tmp_path) as asked,
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
        firing = {rule["name"] for rule in rules if rule["state"] == "firing"}
        assert not {"MfalconDown", "MfalconInternalErrors", "MfalconRedisDamaged"} & firing
        for query in panels():
            if "code!~" not in query and not SELDOM & set(re.findall(r"mfalcon_\w+", query)):
                asked.until(f"count({query})", 0)
