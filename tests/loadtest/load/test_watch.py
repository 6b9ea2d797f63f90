"""A watched run: what is sampled when, on a clock that jumps; the metrics of real servers; the command's verdict."""

import asyncio
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loadtest.faults.redis_server import free_port
from loadtest.load.grpc_target import GrpcTarget
from loadtest.load.open_loop import load
from loadtest.load.process_metrics import parsed, process_metrics
from loadtest.load.watch import Ask, Sample, Watch
from loadtest.load.watched import DESCRIPTORS, GOODPUT, MEMORY, QUEUE, STATES, THREADS, Figure, Watched
from mfalcon.cli.process import serving
from mfalcon.errors import CallFailed, ConfigError
from mfalcon.models import checkpoint
from tests.loadtest.load.test_open_loop import LONG_MS, OPTIONS, invoke
from tests.loadtest.load.virtual_time import in_virtual_time, virtual_loop
from tests.server.harness import Running
from tests.small import small_checkpoint

METRICS = """# HELP process_resident_memory_bytes Resident memory size in bytes.
process_resident_memory_bytes 2097152
process_resident_memory_bytes{frontend="1"} 1048576
process_open_fds 21
process_threads 9
process_threads{frontend="1"} 3
mfalcon_host_bytes{model="m"} 1048576
mfalcon_device_bytes{model="m"} 524288
mfalcon_queue_jobs 4
mfalcon_requests_total{model="m",code="not # a number"} x
"""


def test_the_figures_of_every_process_are_read_and_nothing_else() -> None:
    assert parsed(METRICS) == {
        (MEMORY, "engine"): 2,
        (MEMORY, "front-end 1"): 1,
        (DESCRIPTORS, "engine"): 21,
        (THREADS, "engine"): 9,
        (THREADS, "front-end 1"): 3,
        (STATES, "m"): 1.5,
        (QUEUE, "engine"): 4,
    }


def watched(ask: Ask, seconds: float, *ends: float) -> Watched:
    """A run of so many seconds. ends: of answers, from its beginning."""

    async def run() -> Watched:
        began = virtual_loop().time()
        watch = Watch(ask, seconds)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds + 0.001):
                await watch.run()
        return watch.result({"main": [began + end for end in ends]})

    return in_virtual_time(run())


def growing(figure: Figure, an_hour: float) -> Ask:
    """A server of which one figure grows."""

    async def ask() -> Sample:
        return {(figure, "engine"): 100 + an_hour / 3600 * virtual_loop().time(), (DESCRIPTORS, "engine"): 20}

    return ask


@pytest.mark.parametrize("seconds", [1800, 300, 4])
def test_runs_of_any_length_are_judged(seconds: float) -> None:
    leak = watched(growing(MEMORY, 60), seconds)
    assert list(leak.complaints()) == ["memory of engine grows by 60.00 MiB an hour"]
    assert not list(watched(growing(MEMORY, 0.9), seconds).complaints())
    assert not list(watched(growing(STATES, 60), seconds).complaints())
    assert len(leak.seconds) == max(101, seconds / 5 + 1)


def test_goodput_is_told_over_time() -> None:
    goodput = watched(growing(MEMORY, 0), 500, 1, 2, 4, 6, 499).series[0]
    assert (goodput.figure, goodput.of) == (GOODPUT, "main")
    assert goodput.values[:3] == (None, 3 / 5, 1 / 5)
    assert goodput.values[-1] == 1 / 5


def test_a_server_that_tells_nothing_is_a_complaint() -> None:
    async def ask() -> Sample:
        raise CallFailed("UNAVAILABLE", "nobody")

    silent = watched(ask, 500)
    assert (silent.missed, silent.series) == (101, ())
    assert list(silent.complaints()) == ["the server told nothing of its processes; 101 samples were missed"]


async def test_a_server_tells_of_itself(running: Running) -> None:
    async with process_metrics(running.addresses.http) as ask:
        sample = await ask()
    assert {(MEMORY, "engine"), (DESCRIPTORS, "engine"), (THREADS, "engine")} <= sample.keys()
    assert 10 < sample[MEMORY, "engine"] < 100_000
    async with process_metrics(f"http://{running.addresses.http}/elsewhere") as ask:
        with pytest.raises(CallFailed, match="HTTP_404"):
            await ask()
    async with process_metrics(running.addresses.grpc) as ask:
        with pytest.raises(CallFailed, match="UNAVAILABLE"):
            await ask()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_leak_is_a_warning_or_if_asked_for_a_complaint(fails: bool, running: Running) -> None:
    turns = itertools.count()

    async def ask() -> Sample:
        return {(MEMORY, "engine"): next(turns)}

    target, options = GrpcTarget(running.addresses.grpc), replace(OPTIONS, fail_on_slope=fails)
    result = await load(options, target, lambda text: None, ask=ask)
    await target.close()
    found, other = (result.complaints, result.warnings) if fails else (result.warnings, result.complaints)
    assert any("memory of engine" in text for text in found)  # that it grows, or on a slow machine too few samples
    assert not any("memory" in text for text in other)


def test_what_needs_watch_is_refused_without_it() -> None:
    for option in (("--fail-on-slope",), ("--watch-plot", "x.png")):
        assert "they need --watch" in str(invoke("--rate", "3", *option).exception)


def test_a_server_without_metrics_is_an_error_before_the_load() -> None:
    result = invoke("--rate", "3", "--watch", f"127.0.0.1:{free_port()}")
    assert isinstance(result.exception, ConfigError)
    assert "--watch: 127.0.0.1" in str(result.exception)


def test_the_command_watches_a_server_with_a_front_end(tmp_path: Path) -> None:
    small = small_checkpoint(dtype=torch.float32)
    path = tmp_path / "small"
    checkpoint.save(path, small.model, small.items)
    arguments = ["--rate", "20", "--seconds", "4", "--candidates", "80", "--deadline-ms", str(LONG_MS), "--users", "4"]
    arguments += ["--history", "10", "--checkpoint", str(path)]
    arguments += ["--beside", f"name=cold,clients=1,deadline-ms={LONG_MS},history=10,cold-share=1"]
    arguments += ["--beside", f"name=left,rate=5,deadline-ms={LONG_MS},history=10,cancel-share=0.5"]
    files = {name: tmp_path / name for name in ("soak.json", "soak.md", "soak.png")}
    arguments += ["--json-file", str(files["soak.json"]), "--write", str(files["soak.md"])]
    arguments += ["--watch-plot", str(files["soak.png"])]
    with serving(path, "--threads", "1", "--microbatch", "64", "--frontends", "1") as served:
        result = invoke("--target", served.grpc, "--watch", served.http, *arguments)
        assert result.exit_code == 0, (result.output, result.exception)
    (run,) = json.loads(files["soak.json"].read_text())["runs"]
    told = {(one["figure"]["name"], one["of"]): one for one in run["watched"]["series"]}
    for name in ("memory", "descriptors", "threads"):
        for process in ("engine", "front-end 0"):
            assert told[name, process]["most"] > 0
    assert {("goodput", "main"), ("goodput", "cold"), ("goodput", "left")} <= told.keys()
    assert run["watched"]["missed"] == 0
    assert "| memory, MiB | front-end 0 |" in files["soak.md"].read_text()
    assert files["soak.png"].read_bytes().startswith(b"\x89PNG")
