"""The overhead tool against a server on real sockets."""

import asyncio
import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from loadtest.bench.overhead import OverheadOptions, run
from mfalcon.cli import bench
from mfalcon.errors import ConfigError
from tests.server.harness import Running


def options(running: Running, **changes: int) -> OverheadOptions:
    counts = {"num_candidates": 90, "num_calls": 20, "num_warmup": 3, "num_events": 7} | changes
    return OverheadOptions(target=running.addresses.grpc, **counts)


async def test_it_measures_calls_and_leaves_no_user(running: Running) -> None:
    result = await asyncio.to_thread(run, options(running), lambda _: None)
    assert (result.num_calls, result.misses) == (20, 0)
    assert (result.engine_us.p50, result.engine_us.p99) == (10, 10)
    assert 0 < result.overhead_us.p50 <= result.overhead_us.p99
    assert result.call_us.p50 == pytest.approx(result.overhead_us.p50 + 10)
    assert len(running.engine.requests) == 23
    assert {len(request.candidates) for request in running.engine.requests} == {90}
    assert not running.engine.histories
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["benchmark"] == "overhead"


async def test_too_many_candidates_and_no_server_are_errors(running: Running) -> None:
    with pytest.raises(ConfigError, match="candidates: got 16385, the server takes 16384"):
        await asyncio.to_thread(run, options(running, num_candidates=16_385), lambda _: None)
    nobody = OverheadOptions(target="127.0.0.1:1", timeout_s=0.3)
    with pytest.raises(ConfigError, match=r"target: 127\.0\.0\.1:1 answers"):
        await asyncio.to_thread(run, nobody, lambda _: None)


async def test_the_command_prints_a_table_or_one_json_object(running: Running) -> None:
    arguments = ["overhead", "--target", running.addresses.grpc, "--m", "9", "--calls", "5"]
    shown = await asyncio.to_thread(CliRunner().invoke, bench.app, arguments)
    assert "5 calls, 9 candidates, 200 events, 0 misses" in shown.stdout
    printed = await asyncio.to_thread(CliRunner().invoke, bench.app, [*arguments, "--json"])
    assert json.loads(printed.stdout)["num_calls"] == 5
