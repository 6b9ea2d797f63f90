"""Every metric of the catalog moves when what it counts happens: real servers and engines are driven through all of it.

What takes a machine that nobody has here, or a fault that another test makes, is named with that test.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.compose import EngineConfig, compose, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.ensemble import EnsembleOptions, MemberOptions
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.errors import DeadlineExceeded, Overloaded, StorageUnavailable
from mfalcon.history.budget import LogBudget
from mfalcon.history.file_log import FileLogOptions
from mfalcon.history.redis_log import LogOptions
from mfalcon.items.delta import Delta
from mfalcon.metrics.catalog import METRICS
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Append, Rerank
from proto import ranking_pb2
from server.access.quota import Ledger, Quota
from tests.capture.capturing import capturing, options
from tests.engine.replicas import always_fetch, settle
from tests.engine.test_ensembles import without_score
from tests.redis_fixtures import OwnRedis
from tests.server.harness import serving_engine
from tests.small import random_events, rank_request, small_checkpoint, small_config

__all__ = ["always_fetch"]

ROOT = Path(__file__).parents[2]
CONFIG = small_config(with_counters=True)
COUNTED = small_checkpoint(config=CONFIG)
PLAIN = without_score(0, 3)
ITEMS = COUNTED.items.item_id[:20].tolist()
WAIT_S = 60.0

ELSEWHERE = {
    # what counts it: the file that makes it happen, and what it says there
    "mfalcon_access_log_lines": ("tests/server/test_access_log.py", "mfalcon_access_log_lines_total"),
    "mfalcon_spans": ("tests/server/test_spans.py", "mfalcon_spans_total"),
    "mfalcon_refusals_paced": ("tests/server/test_refusals.py", "mfalcon_refusals_paced_total"),
    "mfalcon_handshakes_paced": ("tests/server/http/test_handshakes.py", "mfalcon_handshakes_paced_total"),
    "mfalcon_partial": ("tests/engine/test_partial.py", "mfalcon_partial_total"),
    "mfalcon_graph_number": ("tests/engine/test_graph_refreshes.py", "mfalcon_graph_number"),
    "mfalcon_graph_refreshes": ("tests/engine/test_graph_refreshes.py", "mfalcon_graph_refreshes_total"),
    "mfalcon_graph_refresh_seconds": ("tests/engine/test_graph_refreshes.py", "mfalcon_graph_refresh_seconds_count"),
    "mfalcon_capture_dropped": ("tests/capture/test_capture.py", "mfalcon_capture_dropped_total"),
    "mfalcon_fetches_without_room": ("tests/kvcache/test_fetch.py", "fetches_without_room_total"),
    "mfalcon_chunks_rejected": ("tests/engine/test_redis_faults.py", "chunks_rejected_total"),
    "mfalcon_write_behind_waiting": ("tests/kvcache/test_write_behind.py", "write_behind_waiting"),
    "mfalcon_tls_certificate_expiry_timestamp_seconds": ("tests/server/test_tls.py", "expiry_timestamp_seconds"),
    "mfalcon_tls_certificate_changes": ("tests/server/test_tls.py", "certificate_changes_total"),
    "mfalcon_log_conflicts": ("tests/history/test_redis_log.py", "log_conflicts"),
    "mfalcon_log_damaged": ("tests/history/test_damaged_logs.py", '"damaged"'),
    "mfalcon_log_quarantined": ("tests/history/test_damaged_logs.py", '"quarantined"'),
    "mfalcon_log_rollbacks": ("tests/history/test_rollbacks.py", "log_rollbacks"),
    "mfalcon_log_swept": ("tests/history/test_log_sweep.py", "log_swept"),
    "mfalcon_log_expired": ("tests/history/test_log_sweep.py", "log_expired"),
    "mfalcon_log_failed": ("tests/history/test_file_log.py", "failed_total"),
    "mfalcon_log_damaged_users": ("tests/history/test_file_log.py", "damaged_users"),
    "mfalcon_counters_failed": (
        "tests/engine/test_redis_counters.py",
        '"failed_total", "waiting", "stale_reads_total"',
    ),
    "mfalcon_counters_waiting": ("tests/engine/test_redis_counters.py", "mfalcon_counters_waiting"),
    "mfalcon_counters_recounted": ("tests/engine/test_redis_counters.py", "counters_recounted"),
    "mfalcon_counters_swept": ("tests/engine/test_redis_counters.py", "counters_swept"),
    "mfalcon_frontend_restarts": ("tests/server/frontends/test_processes.py", "restarts"),
}
ON_A_DEVICE = {"mfalcon_device_bytes", "mfalcon_device_evicted", "mfalcon_offloaded", "mfalcon_not_offloaded"}
"""They follow totals of the tier and the offload there, whose tests are tests/kvcache/test_offload.py and tests/gpu; an
engine without a GPU has neither.
"""
ALWAYS_SO = {"process_max_fds", "process_start_time_seconds", "python_info", "mfalcon_build_info"}
"""They say what is so from the start, and have a value."""


class Watch:
    """What moves in a server's metrics from here on."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._before = self._now()
        self.moved: set[str] = set()

    def look(self) -> None:
        """Note what has moved by now."""
        self.moved |= {name for name, samples in self._now().items() if samples != self._before[name]}

    async def until(self, *names: str) -> None:
        """Wait for metrics that move behind the requests' backs."""
        give_up = time.monotonic() + WAIT_S
        while not set(names) <= self.moved:
            assert time.monotonic() < give_up, f"{set(names) - self.moved} have not moved"
            await asyncio.sleep(0.01)
            self.look()

    def _now(self) -> dict[str, dict[tuple[str, ...], float]]:
        return {
            family.name: {
                (sample.name, *sample.labels.values()): sample.value
                for sample in family.samples
                if not sample.name.endswith("_created")
            }
            for family in self._metrics.registry.collect()
        }


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Engine]:
    await asyncio.to_thread(engine.wait_ready, WAIT_S)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def one_server() -> set[str]:
    """Two models, an ensemble of them and a bounded log in memory, over both transports."""
    metrics = ServerMetrics()
    watch = Watch(metrics)
    histories = HistoryOptions(
        log_max_events=64, log_slack=32, max_counted_items=5, budget=LogBudget(max_users=3, max_bytes=1 << 24)
    )
    small = RankerOptions(name="main", microbatch=16, kv_budget_bytes=1 << 18)
    config = EngineConfig(threads=1, queue_size=4, histories=histories)
    # Models of one ensemble must have equal tasks: main and other are two seeds of one architecture.
    models = [(COUNTED, small), (PLAIN, dataclasses.replace(small, name="other"))]
    both = EnsembleOptions("both", (MemberOptions("main", 0.5), MemberOptions("other", 0.5)))
    engine = compose_all(models, config, metrics, [both])
    await asyncio.to_thread(engine.wait_ready, WAIT_S)
    async with serving_engine(engine, metrics) as served:
        for number in range(3):
            await engine.append_events(f"user-{number}", Append(random_events(60, number)))
        with pytest.raises(Overloaded):
            await engine.append_events("one too many", Append(random_events(1)))
        late = random_events(1, 9, 1)
        await engine.append_events("user-0", Append(late, late_events="insert"))
        for model in ("main", "other", "both"):
            for number in range(3):
                message = ranking_pb2.RankRequest(user_id=f"user-{number}", candidates=ITEMS, model=model)
                await served.stub.Rank(message)
                _ = [part async for part in served.stub.RankStream(message)]
                await served.stub.RankBatch(ranking_pb2.RankBatchRequest(requests=[message]))
        await engine.rank(dataclasses.replace(rank_request("user-0", ITEMS, top_k=5), rerank=Rerank("mmr", 0.5)), None)
        with pytest.raises(DeadlineExceeded):
            await engine.rank(rank_request("user-0", ITEMS), time.monotonic() - 1)
        await engine.delete_user("user-2")
        served_now = engine.catalog.get("other").checkpoint
        vector = np.zeros((1, PLAIN.model.config.dim), np.float32)
        await engine.update_items("other", Delta(0, served_now.fingerprint, PLAIN.items.item_id[:1], vector))
        await engine.reload("other", lambda: dataclasses.replace(PLAIN, fingerprint="version-of-a-third"))
        await watch.until("mfalcon_loop_lag_seconds", "process_cpu_seconds")
    return watch.moved


async def a_busy_device() -> set[str]:
    """What is only so while a step runs and others wait for it."""
    metrics = ServerMetrics()
    engine = compose(COUNTED, EngineConfig(threads=1, ranker=RankerOptions(microbatch=1)), metrics)
    async with running(engine):
        watch = Watch(metrics)
        many = rank_request("ann", ITEMS * 500)
        ranks = [asyncio.create_task(engine.rank(many, None)) for _ in range(3)]
        await watch.until("mfalcon_queue_jobs", "mfalcon_running_jobs", "mfalcon_queue_seconds")
        await watch.until("mfalcon_device_heartbeat_seconds")
        for rank in ranks:
            rank.cancel()
        await asyncio.gather(*ranks, return_exceptions=True)
    return watch.moved


async def a_log_in_a_file(directory: Path) -> set[str]:
    """Users go for others who come."""
    metrics = ServerMetrics()
    watch = Watch(metrics)
    histories = HistoryOptions(
        file=FileLogOptions(directory, "memory", step_s=0), budget=LogBudget(max_users=1, when_full="evict")
    )
    engine = compose(PLAIN, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16), histories=histories), metrics)
    async with running(engine):
        await engine.append_events("ann", Append(random_events(30)))
        await asyncio.sleep(1.1)  # it counts seconds
        await engine.append_events("bob", Append(random_events(20, 1)))
        await watch.until(
            *("mfalcon_log_evicted", "mfalcon_deleted_users", "mfalcon_log_commit_seconds"),
            *("mfalcon_log_commit_changes", "mfalcon_log_journal_bytes", "mfalcon_log_verified_ratio"),
        )
    return watch.moved


async def replicas(server: RedisServer) -> set[str]:
    """Two on one Redis, which then freezes."""
    moved = set[str]()
    redis = RedisOptions(RedisSettings(server.url, 2.0, 2.0), prefix="t", log=LogOptions(serve_stale=True))
    histories = HistoryOptions(log_max_events=64, log_slack=32, max_counted_items=1_000, redis=redis)
    config = EngineConfig(threads=1, ranker=RankerOptions(microbatch=16), histories=histories)
    one, two = (compose(COUNTED, config, ServerMetrics()) for _ in range(2))
    watches = [Watch(engine.metrics) for engine in (one, two)]
    async with running(one), running(two):
        events = random_events(100)
        for first in range(0, 100, 20):
            await one.append_events("ann", Append(events[first : first + 20], first))
        request = rank_request("ann", ITEMS)
        await one.rank(request, None)
        await settle(one)
        await two.rank(request, None)
        await watches[0].until("mfalcon_chunks", "mfalcon_counted_events", "mfalcon_counters_copied")
        await watches[1].until("mfalcon_state_decisions", "mfalcon_chunk_bytes")
        waits = dataclasses.replace(redis, log=LogOptions(durability="replica"))
        patient = dataclasses.replace(config, histories=dataclasses.replace(histories, redis=waits))
        async with running(compose(COUNTED, patient, one.metrics)) as durable:
            with pytest.raises((StorageUnavailable, DeadlineExceeded), match="may have been written"):
                await durable.append_events("bob", Append(random_events(3)), time.monotonic() + 1)
        server.freeze()
        await two.rank(request, None)
        with contextlib.suppress(StorageUnavailable, DeadlineExceeded):
            await one.append_events("ann", Append(random_events(1, 3, 2 * 10**12)), time.monotonic() + 1)
        await two.rank(request, None)
        await watches[1].until("mfalcon_redis_errors", "mfalcon_redis_breaker_open", "mfalcon_redis_breaker_opened")
        server.thaw()
        for watch in watches:
            watch.look()
            moved |= watch.moved
    return moved


async def captured_requests(directory: Path) -> set[str]:
    """One is captured, and its user deleted."""
    async with capturing(options(directory), PLAIN) as engine:
        watch = Watch(engine.metrics)
        await engine.append_events("ann", Append(random_events(5)))
        await engine.rank(rank_request("ann", ITEMS), None)
        await watch.until(
            *("mfalcon_captured", "mfalcon_captured_bytes", "mfalcon_capture_disk_bytes", "mfalcon_capture_users")
        )
        await engine.delete_user("ann")
        await watch.until("mfalcon_capture_deleted_users")
    return watch.moved


def callers_with_limits() -> set[str]:
    """One who asks, is refused by a limit, and is given back what the engine did not take."""
    metrics = ServerMetrics()
    watch = Watch(metrics)
    ledger = Ledger(metrics.callers)
    ledger.know({"web": Quota(candidates_per_day=5)})
    with ledger.charged("web", 3):
        watch.look()
    with contextlib.suppress(Overloaded), ledger.charged("web", 2):
        raise Overloaded("the queue is full")
    with pytest.raises(Overloaded), ledger.charged("web", 9):
        pass
    watch.look()
    return watch.moved


def test_what_another_test_makes_happen_is_named_there() -> None:
    assert ELSEWHERE.keys() <= {metric.name for metric in METRICS}
    for path, words in ELSEWHERE.values():
        assert words in (ROOT / path).read_text(), f"{path} has no {words}"


@pytest.mark.usefixtures("always_fetch")
async def test_every_metric_moves(tmp_path: Path, own_redis: OwnRedis) -> None:
    moved = await one_server()
    moved |= callers_with_limits() | await captured_requests(tmp_path / "captures")
    moved |= await a_busy_device()
    moved |= await a_log_in_a_file(tmp_path / "log")
    moved |= await replicas(own_redis())
    expected = {metric.name for metric in METRICS} - ELSEWHERE.keys() - ON_A_DEVICE - ALWAYS_SO
    assert expected - moved == set()
