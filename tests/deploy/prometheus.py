"""A real Prometheus with the rules of deploy/, for tests."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from loadtest.faults.redis_server import free_port
from tests.deploy.manifests import ROOT

PATIENCE_S = 180.0


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
        """The only value of a query, once it is above `least`. AssertionError when that takes too long."""
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
def prometheus(directory: Path, *scraped: str) -> Iterator[Prometheus]:
    """One that scrapes addresses each second, the first as the pod mfalcon-0 of the namespace mfalcon, and so on."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")
    targets = [
        {"targets": [address], "labels": {"namespace": "mfalcon", "pod": f"mfalcon-{number}"}}
        for number, address in enumerate(scraped)
    ]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT.parent / "prometheus/rules.yaml")],
        "scrape_configs": [{"job_name": "mfalcon", "static_configs": targets}],
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
