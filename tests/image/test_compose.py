"""deploy/compose.yaml, run for real by podman-compose: replicas, Envoy, Redis and Prometheus.

Where no registry answers, all but Grafana's image is made here, and Grafana is left out.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from loadtest.faults.redis_server import free_port
from mfalcon_client import Client
from tests.image.engine import ROOT, Engine, limits_of_processes
from tests.image.test_image import ITEMS, events

pytestmark = pytest.mark.image
OTHERS = ("redis", "envoy", "prometheus")
NUM_USERS = 40
NOW_MS = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class Stack:
    """What `up` has started. callers, prometheus: addresses."""

    engine: Engine
    callers: str
    prometheus: str

    def replicas(self) -> list[str]:
        """The containers of mfalcon that run."""
        listed = self.engine.run("ps", "--format", "{{.Names}}", "--filter", "name=mfalcon[-_]mfalcon")
        return listed.split()

    def value(self, query: str) -> list[float]:
        """What Prometheus answers, a number a series."""
        url = f"http://{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return [float(series["value"][1]) for series in json.load(reply)["data"]["result"]]


@contextmanager
def up(engine: Engine, images: dict[str, str]) -> Iterator[Stack]:
    """The services of the compose file, gone when the block ends with all that they stored."""
    program = shutil.which("podman-compose")
    if program is None:
        pytest.fail("podman-compose is not installed: make compose-test installs it")
    ports = {name: str(free_port()) for name in ("CALLERS_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
    environment = {**os.environ, **images, **ports}
    options = ("--in-pod", "false", "--podman-path", str(engine.program()), "-f", str(ROOT / "deploy/compose.yaml"))
    bounds = ("--podman-run-args", " ".join(limits_of_processes()))

    def compose(*words: str) -> None:
        made = subprocess.run(
            [program, *options, *bounds, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"{' '.join(words)}: {made.stdout[-2_000:]}{made.stderr[-4_000:]}")

    try:
        compose("up", "--detach", "--no-build", "mfalcon", *OTHERS)
        yield Stack(engine, f"127.0.0.1:{ports['CALLERS_PORT']}", f"127.0.0.1:{ports['PROMETHEUS_PORT']}")
    finally:
        compose("down", "--volumes")


def wait_for(what: str, is_so: object, seconds: float = 120) -> None:
    """Return once a call is true; errors of a network count as not yet."""
    assert callable(is_so)
    give_up = time.monotonic() + seconds
    while True:
        try:
            if is_so():
                return
        except OSError:
            pass
        assert time.monotonic() < give_up, f"not within {seconds:g} s: {what}"
        time.sleep(0.5)


def test_three_replicas_behind_envoy_share_users_and_lose_one(
    engine: Engine, base: str, cpu_image: str, measured: dict[str, object]
) -> None:
    images = {"MFALCON_IMAGE": f"localhost/{cpu_image}"}
    for name in OTHERS:
        engine.build(Path(__file__).with_name("others.Dockerfile"), name, f"local-{name}", {"BASE": base})
        images[f"{name.upper()}_IMAGE"] = f"localhost/local-{name}"
    begun = time.monotonic()
    with up(engine, images) as stack, Client(stack.callers, timeout_s=20) as client:
        client.wait_ready(180)
        measured["compose_start_to_ready_s"] = round(time.monotonic() - begun, 1)
        wait_for("three replicas are scraped", lambda: stack.value('sum(up{job="mfalcon"})') == [3.0])
        before = {}
        for user in range(NUM_USERS):
            client.append_events(f"u{user}", events(20, user))
            before[user] = client.rank(f"u{user}", ITEMS, request_time_ms=NOW_MS)
        wait_for(
            "each replica has ranked, and each user on one of them: as many states were made as there are users",
            lambda: (
                len(stack.value('sum by (instance) (mfalcon_requests_total{verb="rank"}) > 0')) == 3
                and stack.value('sum(mfalcon_requests_total{verb="rank"})') == [float(NUM_USERS)]
            ),
        )
        assert len(stack.replicas()) == 3
        with urllib.request.urlopen(f"http://{stack.prometheus}/api/v1/rules", timeout=10) as reply:
            assert json.load(reply)["data"]["groups"]
        engine.run("kill", stack.replicas()[0])
        failed = 0
        for user in range(NUM_USERS):
            after = client.rank(f"u{user}", ITEMS, request_time_ms=NOW_MS)
            failed += after.history_len != 20
            np.testing.assert_allclose(after.scores, before[user].scores, atol=1e-4)
        assert failed == 0
        measured["compose_after_kill"] = {"users": NUM_USERS, "failed": failed, "replicas_left": len(stack.replicas())}
