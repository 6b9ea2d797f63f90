"""A trace on an engine: counts that repeat, users in order, and a random checkpoint that is a checkpoint."""

import asyncio
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import shape_named
from loadtest.faults.redis_server import RedisServer
from loadtest.load.replay_trace import ReplayReport, replay
from loadtest.load.trace import Append, Rank, TraceOptions, trace
from mfalcon.cli import bench
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.ranker import RankerOptions
from mfalcon.errors import ConfigError
from mfalcon.history.redis_header import HEADER_BYTES
from mfalcon.kvcache.cost import Estimate
from mfalcon.kvcache.decision import Decision
from mfalcon.kvcache.planner import Predictor, Situation
from mfalcon.models import checkpoint

OPTIONS = TraceOptions(
    num_users=12, num_requests=80, num_items=40, max_history=40, delete_share=0.05, edit_share=0.05, seed=3
)
CHECKPOINT = random_checkpoint(shape_named("tiny"), 40, max_history=32)
TIMES = {"seconds", "p50_ms", "p99_ms", "max_ms"}


def always_fetch(predictor: Predictor, at: Situation) -> Decision:
    """On tiny models encoding wins; here the way through Redis is what is tested."""
    recompute = Estimate(1.0, 1.0)
    if at.redis_tokens is None:
        return Decision("recompute", "redis unavailable", None, recompute)
    return Decision("fetch", "cheaper", Estimate(0.5, 0.5), recompute)


async def played(concurrency: int, kv_budget_bytes: int = 1 << 30) -> ReplayReport:
    engine = compose(
        CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16, kv_budget_bytes=kv_budget_bytes))
    )
    try:
        return await replay(lambda user: engine, trace(OPTIONS), concurrency)
    finally:
        await engine.close()


def counts(report: ReplayReport) -> dict[str, object]:
    return {name: value for name, value in asdict(report).items() if name not in TIMES}


async def test_one_user_at_a_time_gives_the_same_counts_again() -> None:
    first, again = await played(1), await played(1)
    assert counts(first) == counts(again)
    kinds = Counter(type(step) for step in trace(OPTIONS))
    assert (first.requests, first.appends) == (kinds[Rank], kinds[Append]) == (80, kinds[Append])
    assert first.deletes > 0 and first.edits > 0 and not first.errors
    assert sum(first.sources.values()) == 80
    assert first.hit_rates["host"] > 0.3
    assert first.reused_tokens > first.encoded_tokens > 0
    assert 0 < first.p50_ms <= first.p99_ms <= first.max_ms


async def test_many_users_at_once_meet_the_same_states_where_nothing_is_evicted() -> None:
    assert counts(await played(8)) == counts(await played(1))


async def test_without_memory_nothing_is_reused() -> None:
    report = await played(1, kv_budget_bytes=0)
    assert (report.reused_tokens, report.sources["none"]) == (0, 80)


async def test_what_fails_is_counted_by_its_name() -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    await asyncio.to_thread(engine.wait_ready)
    await engine.close()
    report = await replay(lambda user: engine, trace(OPTIONS), 4)
    assert set(report.errors) == {"ShuttingDown"}
    assert (report.requests, report.p99_ms, report.hit_rates["host"]) == (0, 0.0, 0.0)


def test_a_random_checkpoint_can_be_saved_and_served(tmp_path: Path) -> None:
    fingerprint = checkpoint.save(tmp_path / "random", CHECKPOINT.model, CHECKPOINT.items)
    loaded = checkpoint.load(tmp_path / "random")
    assert loaded.fingerprint == fingerprint
    assert loaded.items.item_id.tolist() == list(range(1, 41))
    written = CHECKPOINT.model.state_dict()
    assert all(torch.equal(tensor, written[name]) for name, tensor in loaded.model.state_dict().items())


def test_a_seed_gives_the_same_weights() -> None:
    weights = [random_checkpoint(shape_named("tiny"), 40, seed).model.state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert any(not torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(
        bench.app,
        ["replay", "--requests", "20", "--users", "4", "--history", "30", "--threads", "1", "--json", *arguments],
    )


def served_keys(server: RedisServer) -> set[bytes]:
    """What replicas keep in Redis of their users; the stream of deletions and tombstones go by themselves."""
    keys = server.command("KEYS", "*")
    assert isinstance(keys, list)
    return {key for key in keys if isinstance(key, bytes) and b"deletions" not in key and not is_tombstone(server, key)}


def is_tombstone(server: RedisServer, key: bytes) -> bool:
    """A header without events, which expires."""
    ttl = server.command("TTL", key)
    assert isinstance(ttl, int)
    return key.endswith(b":log") and ttl > 0 and server.command("STRLEN", key) == HEADER_BYTES


@pytest.mark.parametrize("saved", [False, True])
def test_the_command_prints_one_object(saved: bool, tmp_path: Path) -> None:
    arguments: list[str] = []
    if saved:
        checkpoint.save(tmp_path / "random", CHECKPOINT.model, CHECKPOINT.items)
        arguments += ["--checkpoint", str(tmp_path / "random")]
    else:
        arguments += ["--shape", "tiny"]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["benchmark"], found["requests"], found["errors"]) == ("replay", 20, {})
    assert {"machine", "commit", "trace"} <= set(found)
    assert set(found["hit_rates"]) == {"none", "gpu", "host", "redis"}


@pytest.mark.parametrize("route", ["random", "sticky"])
def test_replicas_share_a_redis_and_leave_no_user(
    route: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "decide", always_fetch)
    result = invoke("--shape", "tiny", "--redis-url", redis_server.url, "--replicas", "3", "--route", route)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["replicas"], found["requests"], found["errors"]) == (3, 20, {})
    assert (found["sources"]["redis"] > 0) == (route == "random")
    assert not served_keys(redis_server)


def test_redis_of_its_own() -> None:
    result = invoke("--shape", "tiny", "--redis")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["redis"] is True


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["--redis", "--redis-url", "redis://x"], "does not go with"), (["--replicas", "2"], "share nothing")],
)
def test_flags_that_contradict_each_other_are_refused(arguments: list[str], complaint: str) -> None:
    result = invoke("--shape", "tiny", *arguments)
    assert isinstance(result.exception, ConfigError)
    assert complaint in str(result.exception)
