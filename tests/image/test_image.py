"""The image, built and run for real: what it holds, and how it lives inside the bounds of a container."""

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import SHAPES, Shape
from mfalcon.models import checkpoint
from mfalcon.types import EVENT_DTYPE
from mfalcon_client import Client, ClientError, Retry, Unavailable
from tests.image.container import Container, running
from tests.image.engine import Engine, limits_of_processes

pytestmark = pytest.mark.image
GIB = 1 << 30
ITEMS = np.arange(1, 201)


def events(num_events: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    rng = np.random.default_rng(seed)
    made = np.zeros(num_events, EVENT_DTYPE)
    made["item_id"] = rng.integers(1, 201, num_events)
    made["actions"] = 1 << rng.integers(0, 5, num_events)
    made["value"] = rng.integers(1, 6, num_events)
    made["time_ms"] = 1_700_000_000_000 + np.arange(num_events) * 1_000
    return made


def rank_over_http(address: str, user_id: str, candidates: list[int]) -> list[float]:
    body = json.dumps({"user_id": user_id, "candidates": candidates, "request_time_ms": 1_800_000_000_000}).encode()
    request = urllib.request.Request(f"http://{address}/v1/rank", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        scores: list[float] = json.load(reply)["scores"]
    return scores


def test_it_holds_what_serves_and_nothing_else(engine: Engine, cpu_image: str, measured: dict[str, object]) -> None:
    def inside(*command: str) -> str:
        options = ("--rm", "--network", "none", *limits_of_processes(), "--entrypoint", command[0])
        return engine.run("run", *options, cpu_image, *command[1:])

    tools = "gcc g++ cc clang make"
    assert inside("sh", "-c", f"for tool in {tools}; do command -v $tool; done; true") == ""
    assert inside("sh", "-c", "ls -d /app/loadtest /app/tests /app/mfalcon/train 2>/dev/null; true") == ""
    assert inside("sh", "-c", "find / -xdev -user 10001 -not -path '/proc/*' 2>/dev/null; true") == "/cache"
    assert "No module named" in inside("sh", "-c", "python -m pip --version 2>&1; true")
    assert "in a checkout alone" in inside("sh", "-c", "python -m mfalcon.cli train 2>&1; true")
    bill = json.loads(inside("cat", "/app/sbom.json"))
    assert bill["bomFormat"] == "CycloneDX"
    assert {"torch", "grpcio", "redis"} <= {part["name"] for part in bill["components"]}
    (told,) = json.loads(engine.run("image", "inspect", cpu_image))
    assert told["Config"]["Entrypoint"][0] == "python"
    assert told["Config"]["User"] == "10001:10001"
    assert told["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    measured["cpu_image_mib"] = told["Size"] >> 20
    measured["parts_mib"] = {
        part: int(inside("du", "-sm", part).split()[0]) for part in ("/usr", "/opt/mfalcon", "/app", "/checkpoint")
    }


def test_it_serves_a_demo_read_only_and_within_its_cores(
    engine: Engine, cpu_image: str, measured: dict[str, object]
) -> None:
    with running(engine, cpu_image, "--memory", "1g", "--cpus", "1") as container:
        measured["start_to_ready_s"] = container.ready_s
        log = container.log()
        assert "made-up ratings; mount your own checkpoint: -v DIRECTORY:/checkpoint:ro" in log
        assert "threads: 1" in log
        (states_mib,) = [int(line.split()[-4]) for line in log.splitlines() if "memory for KV states: " in line]
        assert 0 < states_mib < 512, "half of what is left of a GiB"
        status = container.inside("cat", "/proc/1/status")
        assert "Uid:\t10001\t10001" in status
        assert "CapEff:\t0000000000000000" in status
        assert container.inside("cat", "/proc/1/cmdline").startswith("python\0-m\0mfalcon.cli\0serve")
        assert "Read-only" in container.inside("sh", "-c", "touch /app/x 2>&1; touch /cache/x")
        engine.run("healthcheck", "run", container.name)
        with Client(container.grpc) as client:
            client.append_events("ann", events(30, 0))
            ranking = client.rank("ann", ITEMS, request_time_ms=1_800_000_000_000)
        assert ranking.history_len == 30
        assert rank_over_http(container.http, "ann", ITEMS.tolist()) == pytest.approx(ranking.scores.tolist(), abs=1e-5)


def test_the_cuda_target_is_all_there_but_for_its_packages(
    engine: Engine, base: str, context: Path, tmp_path: Path, measured: dict[str, object]
) -> None:
    """The CUDA build of torch is gigabytes: its place takes the other one. What it computes needs a device."""
    copy = tmp_path / "context"
    shutil.copytree(context, copy)
    shutil.copy(copy / "deploy/image/torch-cpu.txt", copy / "deploy/image/torch-cuda.txt")
    engine.build(copy / "Dockerfile", "cuda", "mfalcon:cuda-without-cuda", {"BASE": base}, copy)
    options = ("--rm", "--network", "none", *limits_of_processes(), "mfalcon:cuda-without-cuda")
    assert "torch finds 0 CUDA devices here" in engine.run("run", *options, check=False, errors=subprocess.STDOUT)
    measured["cuda_not_run"] = "its CUDA packages (torch-cuda.txt) were not installed, and no device was there"


def write(directory: Path, shape: Shape, seed: int) -> str:
    """A checkpoint with random weights, which another user may read; returns its version."""
    made = random_checkpoint(shape, len(ITEMS), seed, max_history=512)
    version = checkpoint.save(directory, made.model, made.items)
    for path in (directory, *directory.iterdir()):
        path.chmod(0o755)
    return version


def test_it_reloads_from_a_mounted_directory(engine: Engine, cpu_image: str, tmp_path: Path) -> None:
    versions = [write(tmp_path / f"v{seed}", SHAPES["tiny"], seed) for seed in (1, 2)]
    tmp_path.chmod(0o755)
    (tmp_path / "current").symlink_to("v1")
    settings = {"CHECKPOINT": "/checkpoints/current", "WATCH_SECONDS": "0.2"}
    mount = ("-v", f"{tmp_path}:/checkpoints:ro")
    with running(engine, cpu_image, *mount, settings=settings) as container, Client(container.grpc) as client:
        assert client.rank("ann", ITEMS).model_version == versions[0][:12]
        (tmp_path / "next").symlink_to("v2")
        (tmp_path / "next").rename(tmp_path / "current")
        give_up = time.monotonic() + 60
        while client.rank("ann", ITEMS).model_version != versions[1][:12]:
            assert time.monotonic() < give_up, container.log()
            time.sleep(0.1)


class Caller(threading.Thread):
    """Ranks without a pause until a call is refused; keeps when each call began and why it failed."""

    def __init__(self, container: Container, user_id: str) -> None:
        super().__init__()
        self._client = Client(container.grpc, retry=Retry(attempts=1))
        self._user_id = user_id
        self.answered: list[float] = []
        self.failed: tuple[float, ClientError] | None = None

    def run(self) -> None:
        with self._client as client:
            while self.failed is None:
                begun = time.monotonic()
                try:
                    client.rank(self._user_id, ITEMS)
                except ClientError as error:
                    self.failed = begun, error
                else:
                    self.answered.append(begun)


def test_sigterm_drains_under_load(engine: Engine, cpu_image: str, measured: dict[str, object]) -> None:
    linger_s = 3.0
    with running(engine, cpu_image, "--cpus", "1", settings={"DRAIN_LINGER_S": str(linger_s)}) as container:
        callers = [Caller(container, f"user {number}") for number in range(8)]
        for caller in callers:
            caller.start()
        time.sleep(2)
        signalled = time.monotonic()
        engine.run("stop", "--time", "60", container.name)
        for caller in callers:
            caller.join(60)
        assert container.told("{{.State.ExitCode}}") == "0"
        assert "draining" in container.log()
        assert "stopped" in container.log()
        for caller in callers:
            assert caller.failed is not None
            begun, error = caller.failed
            assert isinstance(error, Unavailable), error
            assert begun > signalled + linger_s / 2, "a request from before the drain was lost"
        measured["drain"] = {
            "answered": sum(len(caller.answered) for caller in callers),
            "answered_after_sigterm": sum(begun > signalled for caller in callers for begun in caller.answered),
            "lost": 0,
        }


def test_a_working_set_of_8_gib_under_a_limit_of_2(
    engine: Engine, cpu_image: str, tmp_path: Path, measured: dict[str, object]
) -> None:
    """Users' states are four times the limit: the server drops them, never dies, and computes them again."""
    shape = Shape("deep", num_layers=16, dim=64, num_heads=2)
    write(tmp_path / "deep", shape, 1)
    tmp_path.chmod(0o755)
    num_events = 512
    state_bytes = num_events * shape.num_layers * 2 * shape.dim * 4
    num_users = 8 * GIB // state_bytes
    first: dict[int, list[float]] = {}
    options = ("--memory", "2g", "--memory-swap", "2g", "-v", f"{tmp_path / 'deep'}:/checkpoint:ro")
    with running(engine, cpu_image, *options) as container, Client(container.grpc, timeout_s=60) as client:

        def scores(user: int) -> list[float]:
            listed: list[float] = client.rank(f"u{user}", ITEMS, request_time_ms=1_800_000_000_000).scores.tolist()
            return listed

        begun = time.monotonic()
        for user in range(num_users):
            client.append_events(f"u{user}", events(num_events, user))
            found = scores(user)
            if user % 64 == 0:
                first[user] = found
        for user, before in first.items():
            assert scores(user) == pytest.approx(before, abs=1e-4)
        peak = int(
            container.inside(
                "sh",
                "-c",
                "cat /sys/fs/cgroup/memory.peak /sys/fs/cgroup/memory/memory.max_usage_in_bytes 2>/dev/null; true",
            ).split()[0]
        )
        resident = [line for line in container.inside("cat", "/proc/1/status").splitlines() if "VmHWM" in line]
        resident_bytes = int(resident[0].split()[1]) << 10
        assert container.told("{{.State.OOMKilled}}") == "false"
        assert container.told("{{.RestartCount}}") == "0"
        assert resident_bytes < 2 * GIB
        log = container.log()
    measured["memory"] = {
        "limit_mib": 2_048,
        "working_set_mib": num_users * state_bytes >> 20,
        "users": num_users,
        "peak_resident_mib": resident_bytes >> 20,
        "peak_of_the_group_mib": peak >> 20,
        "asked_twice_and_equal": len(first),
        "states": next(line for line in log.splitlines() if "memory for KV states" in line).split(": ", 1)[-1],
        "seconds": round(time.monotonic() - begun, 1),
    }
