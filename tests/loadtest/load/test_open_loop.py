"""Whole loads over real sockets: on a scripted server, on the server of this project, and as the command."""

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner, Result

from loadtest.faults.redis_server import free_port
from loadtest.faults.slow_proxy import SlowProxy
from loadtest.load.driver import Limits
from loadtest.load.grpc_target import GrpcTarget
from loadtest.load.http_target import HttpTarget
from loadtest.load.load_result import LoadResult
from loadtest.load.open_loop import LoadOptions, load
from loadtest.load.target import Target
from loadtest.load.traffic import Traffic
from loadtest.report.pages import load_page, read_page
from loadtest.report.plot import plot_load
from loadtest.report.result import write_json
from loadtest.report.table import as_text
from mfalcon.cli import loadtest
from mfalcon.cli.process import serving
from mfalcon.errors import ConfigError, DataError
from mfalcon.models import checkpoint
from proto import ranking_pb2 as pb
from tests.loadtest.load.scripted_server import Context, refused, right, scripted_server, wrong
from tests.server.harness import Running
from tests.small import small_checkpoint

ROOT = Path(__file__).parents[3]
LONG_MS = 60_000
"""A deadline that no machine is too slow for."""
MAIN = Traffic(rate=1, candidates=9, deadline_ms=LONG_MS, users=3, history=5)
OPTIONS = LoadOptions(target="somewhere", main=MAIN, rates=(20.0,), item_ids=np.arange(1, 50), seconds=1.0)


async def loaded(target: Target, options: LoadOptions = OPTIONS) -> LoadResult:
    """The result; the target is closed."""
    try:
        return await load(options, target, lambda text: None)
    finally:
        await target.close()


async def test_every_end_over_a_real_connection() -> None:
    async with scripted_server() as server:
        server.script, server.num_before = (right, refused, wrong, server.never), MAIN.users
        options = replace(
            OPTIONS,
            main=replace(MAIN, deadline_ms=0),
            limits=Limits(patience_without_deadline_s=5.0),
        )
        result = await loaded(GrpcTarget(server.target), options)
        assert not server.users
        (one,) = result.runs[0].classes
        async with asyncio.timeout(60):
            await server.all_left(one.never)  # what the client gives up ends on the server too
    ends = (one.right, one.errors["RESOURCE_EXHAUSTED"], one.wrong, one.never)
    assert sum(ends) == one.sent > 4
    assert max(ends) - min(ends) <= 1
    assert one.adds_up and one.late == one.unsent == one.cancelled == 0
    assert one.checked == one.right + one.wrong
    assert one.worst_gap == pytest.approx(0.001, rel=0.01)
    assert [text.partition(": ")[2] for text in result.complaints] == [
        f"{one.wrong} wrong answers",
        f"{one.never} requests were never answered",
    ]


async def test_a_deadline_that_passes_on_the_server_is_its_answer() -> None:
    async with scripted_server() as server:
        server.script, server.num_before = (server.never,), MAIN.users
        options = replace(OPTIONS, main=replace(MAIN, deadline_ms=400), limits=Limits(patience_s=60))
        result = await loaded(GrpcTarget(server.target), options)
    (one,) = result.runs[0].classes
    assert one.errors.get("DEADLINE_EXCEEDED", 0) + one.late + one.unsent == one.sent > 0
    assert result.complaints == (f"main, 20/s: of {one.sent} requests none was answered with scores",)


async def test_answers_that_are_long_on_their_way_are_late() -> None:
    async with scripted_server() as server:
        with SlowProxy(int(server.target.rpartition(":")[2])) as proxy:
            target = GrpcTarget(f"127.0.0.1:{proxy.port}", num_channels=1)
            server.num_before = MAIN.users

            async def hold_back(request: pb.RankRequest, context: Context) -> pb.RankResponse:
                proxy.delay_s = 1.0
                return await right(request, context)

            server.script = (hold_back,)
            options = replace(OPTIONS, main=replace(MAIN, deadline_ms=500), limits=Limits(patience_s=60))
            result = await loaded(target, options)
    (one,) = result.runs[0].classes
    assert one.late > 0
    assert one.latest_ms is not None and one.latest_ms > 20
    assert one.adds_up


async def test_cancelled_requests_end_on_the_server_too() -> None:
    async with scripted_server() as server:
        server.script, server.num_before = (server.never,), MAIN.users
        options = replace(OPTIONS, main=replace(MAIN, deadline_ms=0, cancel_share=1.0))
        result = await loaded(GrpcTarget(server.target), options)
        async with asyncio.timeout(60):
            await server.all_left(server.num_ranks - MAIN.users)
    (one,) = result.runs[0].classes
    assert one.cancelled == one.sent > 0
    assert one.adds_up


@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_a_load_on_a_server_checks_every_answer_and_leaves_nothing(transport: str, running: Running) -> None:
    addresses = running.addresses
    target: Target = GrpcTarget(addresses.grpc) if transport == "grpc" else HttpTarget(f"http://{addresses.http}")
    beside = (
        Traffic(name="cold", clients=2, candidates=7, deadline_ms=LONG_MS, users=2, history=4, cold_share=1),
        Traffic(name="steady", clients=1, candidates=50, deadline_ms=LONG_MS, users=1, history=3),
    )
    result = await loaded(target, replace(OPTIONS, rates=(30.0, 60.0), beside=beside, seconds=0.5))
    assert result.complaints == ()
    for run in result.runs:
        assert [one.traffic.name for one in run.classes] == ["main", "cold", "steady"]
        for one in run.classes:
            assert one.adds_up
            assert one.right == one.sent == one.checked > 0
            assert one.worst_gap == 0
    assert result.runs[1].main.sent > result.runs[0].main.sent
    assert result.unknown_share == 0
    assert not running.engine.histories
    cold = [request.user_id for request in running.engine.requests if len(request.candidates) == 7]
    assert len(cold) == len(set(cold))


def test_item_ids_come_from_a_file_of_them(tmp_path: Path) -> None:
    for text, complaint in (("", "there is none"), ("1\nx\n", "invalid literal"), (str(2**63), "too large")):
        (tmp_path / "ids").write_text(text)
        result = invoke("--rate", "3", "--item-ids", str(tmp_path / "ids"))
        assert isinstance(result.exception, DataError)
        assert complaint in str(result.exception)
    (tmp_path / "ids").write_text("7\n-9\n")
    result = invoke("--rate", "3", "--item-ids", str(tmp_path / "ids"), "--target", f"127.0.0.1:{free_port()}")
    assert isinstance(result.exception, ConfigError)  # the ids are fine, nobody listens


async def test_unknown_items_are_told(running: Running) -> None:
    result = await loaded(GrpcTarget(running.addresses.grpc), replace(OPTIONS, item_ids=np.arange(5_000, 6_000)))
    assert result.unknown_share == 1
    assert any("does not know 100% of the candidates" in text for text in result.warnings)


async def test_a_search_ends_with_a_bracket_or_says_that_there_is_none(running: Running) -> None:
    options = replace(OPTIONS, rates=(160.0,), seconds=0.5, search_p99_ms=0.0)  # nothing is as fast as this
    result = await loaded(GrpcTarget(running.addresses.grpc), options)
    assert result.found is not None
    assert (result.found.holds, result.found.fails) == (None, 40.0)  # 20 requests, the fewest
    assert "no rate that was tried" in as_text(load_page(result))


async def test_a_search_that_finds_a_rate_tells_it_and_the_one_that_failed() -> None:
    runs: list[str] = []

    async def refuses_from_the_third_run_on(request: pb.RankRequest, context: Context) -> pb.RankResponse:
        return await (right if len(runs) < 3 else refused)(request, context)

    async with scripted_server() as server:
        server.script = (refuses_from_the_third_run_on,)
        target = GrpcTarget(server.target)
        options = replace(OPTIONS, seconds=0.5, search_p99_ms=60_000.0)
        result = await load(options, target, lambda text: runs.append(text) if "a second" in text else None)
        await target.close()
    assert result.found is not None
    assert result.found.holds == 40
    assert result.found.fails == pytest.approx(40 * 2 ** (1 / 16))
    assert "40.0 requests a second; 41.8 a second failed" in as_text(load_page(result))


async def test_a_server_that_refuses_the_preparation_is_an_error_and_left_clean() -> None:
    async with scripted_server() as server:
        server.script = (right, refused)
        with pytest.raises(ConfigError, match="RESOURCE_EXHAUSTED: the queue is full"):
            await loaded(GrpcTarget(server.target))
        assert not server.users


async def test_more_candidates_than_the_server_takes_are_refused() -> None:
    async with scripted_server() as server:
        with pytest.raises(ConfigError, match="got 1001 candidates, the server takes 1000"):
            await loaded(GrpcTarget(server.target), replace(OPTIONS, main=replace(MAIN, candidates=1_001)))
        assert server.num_ranks == 0


async def test_a_checkpoint_that_is_not_served_is_refused(running: Running) -> None:
    with pytest.raises(ConfigError, match="serves version 5f0c8d2ab1e94c77, the checkpoint is 0000"):
        await loaded(GrpcTarget(running.addresses.grpc), replace(OPTIONS, version="0" * 64))


async def test_a_result_can_be_written_read_and_drawn(running: Running, tmp_path: Path) -> None:
    result = await loaded(GrpcTarget(running.addresses.grpc), replace(OPTIONS, rates=(20.0, 40.0), seconds=0.3))
    write_json(tmp_path / "load.json", result)
    assert as_text(read_page(tmp_path / "load.json")) == as_text(load_page(result))
    plot_load({"before": result, "now": result}, tmp_path / "load.png")
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")


async def started(running: Running, *options: str) -> Process:
    """The command against the server, for ten minutes."""
    command = ("-m", "mfalcon.cli", "loadtest", "--target", running.addresses.grpc, "--rate", "50", "--seconds", "600")
    small = ("--candidates", "9", "--users", "3", "--history", "5", "--deadline-ms", str(LONG_MS))
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, *small, *options, cwd=ROOT, stdout=PIPE, stderr=PIPE
    )


async def until(condition: Callable[[], bool], process: Process) -> None:
    """Wait for it while the process lives."""
    while not condition():
        assert process.returncode is None
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_load_that_is_stopped_tells_what_it_has_and_deletes_its_users(
    number: signal.Signals, running: Running
) -> None:
    process = await started(running, "--json")
    await until(lambda: len(running.engine.requests) > 10, process)
    process.send_signal(number)
    told, said = await process.communicate()
    assert process.returncode == 0, said
    (run,) = json.loads(told)["runs"]
    assert run["stopped"] and run["seconds"] < 600
    assert run["classes"][0]["right"] == run["classes"][0]["sent"] == len(running.engine.requests) - 3
    assert not running.engine.histories


async def test_a_load_that_is_stopped_while_it_prepares_deletes_its_users(running: Running) -> None:
    running.engine.gate.clear()
    process = await started(running)
    await running.engine.entered.wait()  # the first append
    process.send_signal(signal.SIGINT)
    await running.engine.cancelled.acquire()
    running.engine.gate.set()
    await process.communicate()
    assert process.returncode == 130
    assert not running.engine.histories
    assert not running.engine.requests


def invoke(*arguments: str) -> Result:
    app = Typer()
    app.command()(loadtest.loadtest)
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("scheme", ["", "grpc://", "http://"])
def test_a_port_where_nobody_listens_is_an_error(scheme: str) -> None:
    result = invoke("--rate", "5", "--seconds", "1", "--target", f"{scheme}127.0.0.1:{free_port()}")
    assert isinstance(result.exception, ConfigError)
    assert "UNAVAILABLE" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--history", "3"), "--history: it needs --rate"),
        (("--rate", "3", "--user-space", "9"), "--user-space: it does not go with --rate"),
        (("--rate", "3", "--search"), "one needs the other"),
        (("--rate", "3", "--before", "x.json"), "--plot"),
        (("--rate", "3", "--target", "ftp://x"), "must be HOST:PORT"),
        (("--rate", "3", "--checkpoint", "x", "--item-ids", "y"), "one at most"),
        (("--rate", "3", "--beside", "name=main,clients=1", "--target", "127.0.0.1:1"), "is taken"),
        (("--rate", "90000", "--seconds", "100"), "must be at most 10000"),
        (("--rate", "3", "--json-file", "nowhere/load.json"), "there is no folder nowhere"),
        (("--rate", "3", "--write", "nowhere/load.md"), "there is no folder nowhere"),
        (("--rate", "3", "--plot", "nowhere/load.png"), "there is no folder nowhere"),
        (("--rate", "3", "--watch-plot", "nowhere/load.png"), "there is no folder nowhere"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(arguments: tuple[str, ...], complaint: str) -> None:
    result = invoke(*arguments)
    assert complaint in str(result.exception)


def test_a_picture_that_nothing_draws_is_refused_before_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke("--rate", "3", "--seconds", "1", "--target", f"127.0.0.1:{free_port()}", "--plot", "load.png")
    assert isinstance(result.exception, ModuleNotFoundError)


def test_the_command_on_a_real_engine(tmp_path: Path) -> None:
    small = small_checkpoint(dtype=torch.float32)
    path = tmp_path / "small"
    checkpoint.save(path, small.model, small.items)
    arguments = ["--rate", "20", "--seconds", "2", "--candidates", "80", "--deadline-ms", str(LONG_MS), "--users", "4"]
    arguments += ["--history", "10", "--checkpoint", str(path), "--beside", f"name=big,clients=1,deadline-ms={LONG_MS}"]
    files = {name: tmp_path / name for name in ("load.json", "load.md", "load.png")}
    arguments += ["--json-file", str(files["load.json"]), "--write", str(files["load.md"])]
    arguments += ["--plot", str(files["load.png"])]
    with serving(path, "--threads", "1", "--microbatch", "64") as served:
        result = invoke("--target", served.grpc, *arguments)
        assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(files["load.json"].read_text())
    assert {"machine", "commit", "command"} <= found.keys()
    for one in found["runs"][0]["classes"]:
        assert one["right"] == one["sent"] == one["checked"] > 0
        assert one["worst_gap"] <= 1e-5
        assert one["encoded"] == 0
    assert found["unknown_share"] == 0
    assert "| main, 20/s |" in files["load.md"].read_text()
    assert all(file.stat().st_size > 0 for file in files.values())
