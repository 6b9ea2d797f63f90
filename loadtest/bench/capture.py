"""What capturing costs a request, and whether a capture plays the same scores again: users whose histories grow are
ranked for by an engine that captures all of it, and the capture is replayed.
"""

import asyncio
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import headline
from loadtest.report.table import Part, Table
from mfalcon.capture.capture import Capture, CaptureOptions
from mfalcon.capture.files import FileLimits
from mfalcon.capture.keys import KEY_BYTES
from mfalcon.capture.reader import ReadCounts, find_files, find_keys, read_captures
from mfalcon.capture.record import encode
from mfalcon.cores import owned_cores
from mfalcon.counters.sets import Counted
from mfalcon.engine.compose import EngineConfig, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.history.chain import user_hash
from mfalcon.history.history import no_history
from mfalcon.metrics.captures import CaptureMetrics
from mfalcon.metrics.server_metrics import Registry, ServerMetrics
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.pseudonym import user_tag
from mfalcon.replay.player import Player, PlayerOptions
from mfalcon.replay.report import Report, replay
from mfalcon.types import EVENT_DTYPE, Append, Events, Ids, RankRequest, RankResult, no_events

_START_MS = 1_700_000_000_000
_IN_FLIGHT = 8
_SAMPLES = 2_000
_LIMITS = FileLimits(8 << 30, 64 << 20, 365 * 86_400.0)


@dataclass(frozen=True, slots=True)
class CaptureBenchOptions:
    """requests: of all users. events: of a history at the start; `grows` are appended before each second request of a
    user.
    """

    requests: int = 10_000
    candidates: int = 1_000
    users: int = 200
    events: int = 200
    grows: int = 2
    threads: int = 0


@dataclass(frozen=True, slots=True)
class CaptureCosts:
    """Of a captured request. bytes: in the files, histories included; first_bytes: of a user's first in a file, median.
    loop_us: CPU time of the event loop; writer_us: of the thread that writes. deflated: the share of the bytes that
    would be left if everything were deflated (zlib, level 1), and deflate_us what that would take.
    """

    bytes: float
    first_bytes: float
    later_bytes: float
    loop_us: float
    writer_us: float
    deflated: float
    deflate_us: float
    dropped: int


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """Everything that `mfalcon bench capture` knows. same, moved: of the replays, as `mfalcon replay --json` has it."""

    options: CaptureBenchOptions
    costs: CaptureCosts
    same: dict[str, object]
    moved: dict[str, object] | None
    replay_s: float
    machine: Machine
    commit: str | None


def run(
    path: Path, against: Path | None, options: CaptureBenchOptions, progress: Callable[[str], None]
) -> CaptureResult:
    """Capture with a checkpoint, replay with it, and with another one where there is one."""
    threads = options.threads or owned_cores()
    loaded = checkpoint.load(path)
    with TemporaryDirectory(prefix="mfalcon-capture-") as scratch:
        directory = Path(scratch) / "capture"
        progress(f"capturing {options.requests:,} requests of {options.candidates:,} candidates")
        costs = asyncio.run(_capture(loaded, directory, options, threads))
        progress("replaying")
        began = time.monotonic()
        same = _replay(directory, loaded, None, threads)
        seconds = time.monotonic() - began
        moved = None
        if against is not None:
            progress("replaying against the other checkpoint")
            moved = _replay(directory, loaded, checkpoint.load(against), threads).told()
    return CaptureResult(options, costs, same.told(), moved, seconds, this_machine(), commit())


async def _capture(loaded: Checkpoint, directory: Path, options: CaptureBenchOptions, threads: int) -> CaptureCosts:
    metrics = ServerMetrics()
    capture = Capture(CaptureOptions(directory, user_tag, 1.0, _LIMITS), metrics.captures)
    config = EngineConfig(threads=threads, histories=HistoryOptions(log_max_events=16_384))
    engine = compose_all([(loaded, RankerOptions())], config, metrics, capture=capture)
    engine.wait_ready()
    await engine.start()
    try:
        request, result = await _traffic(engine, loaded, options)
        while capture.num_waiting:  # noqa: ASYNC110 (a thread tells nobody)
            await asyncio.sleep(0.01)
        writer_us = 1e6 * capture.cpu_seconds / options.requests
    finally:
        await engine.close()
    dropped = sum(
        int(sample.value)
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "mfalcon_capture_dropped_total"
    )
    loop_us = await asyncio.to_thread(_loop_us, request, result, engine, directory.parent / "loop")
    return _costs(directory, loop_us, writer_us, dropped)


async def _traffic(engine: Engine, loaded: Checkpoint, options: CaptureBenchOptions) -> tuple[RankRequest, RankResult]:
    """The requests; returns the last one with its answer."""
    rng = np.random.default_rng(17)
    items = loaded.items.item_id
    times = np.full(options.users, _START_MS, dtype=np.int64)

    async def append(user: int, num: int) -> None:
        events = _events(rng, items, num, int(times[user]), len(loaded.model.config.actions))
        times[user] = events["time_ms"][-1]
        await engine.append_events(f"user {user}", Append(events))

    for user in range(options.users):
        await append(user, int(rng.integers(1, 2 * options.events)))
    left, last = asyncio.Semaphore(_IN_FLIGHT), list[tuple[RankRequest, RankResult]]()

    async def rank(user: int, number: int) -> None:
        async with left:
            candidates = rng.choice(items, options.candidates)
            request = RankRequest(f"user {user}", candidates, 10, int(times[user]) + 60_000, no_events(), {})
            last[:] = [(request, await engine.rank(request, None))]
            if number % 2:
                await append(user, options.grows)

    turns = -(-options.requests // options.users)
    for turn in range(turns):
        users = range(min(options.users, options.requests - turn * options.users))
        await asyncio.gather(*(rank(user, turn) for user in users))
    return last[0]


def _events(rng: np.random.Generator, items: Ids, num: int, after_ms: int, num_actions: int) -> Events:
    events = np.zeros(num, dtype=EVENT_DTYPE)
    events["item_id"] = rng.choice(items, num)
    events["actions"] = 1 << rng.integers(0, num_actions, num)
    events["value"] = rng.integers(1, 6, num)
    events["time_ms"] = after_ms + np.cumsum(rng.integers(1_000, 10**6, num))
    return events


def _loop_us(request: RankRequest, result: RankResult, engine: Engine, directory: Path) -> float:
    """CPU time of the calling thread for what capturing adds to a request there."""
    capture = Capture(
        CaptureOptions(directory, user_tag, 1.0, _LIMITS, queue_bytes=1 << 40), CaptureMetrics(Registry())
    )
    history, info = no_history(request.user_id), engine.model
    began = time.thread_time()
    for _ in range(_SAMPLES):
        seen = capture.begin(user_hash(request.user_id))
        assert seen is not None
        seen.note(history, Counted())
        capture.offer(seen, info, request, result)
    seconds = time.thread_time() - began
    asyncio.run(capture.close())
    return 1e6 * seconds / _SAMPLES


def _costs(directory: Path, loop_us: float, writer_us: float, dropped: int) -> CaptureCosts:
    files = find_files([directory])
    counts, sizes = ReadCounts(), dict[bool, list[int]]({True: [], False: []})
    plain = deflated = 0
    seconds = 0.0
    for captured in read_captures(files, find_keys(files), counts):
        content = encode(captured.raw)
        part = captured.raw.history
        sizes[part is not None and not part.since].append(len(content) + KEY_BYTES + 32)
        if counts.read % 20 == 0:
            began = time.thread_time()
            deflated += len(zlib.compress(content, 1))
            seconds += time.thread_time() - began
            plain += len(content)
    num_bytes = sum(path.stat().st_size for path in files)
    return CaptureCosts(
        bytes=num_bytes / max(1, counts.read),
        first_bytes=float(np.median(sizes[True])) if sizes[True] else 0.0,
        later_bytes=float(np.median(sizes[False])) if sizes[False] else 0.0,
        loop_us=loop_us,
        writer_us=writer_us,
        deflated=deflated / max(1, plain),
        deflate_us=1e6 * seconds / max(1, counts.read // 20),
        dropped=dropped,
    )


def _replay(directory: Path, loaded: Checkpoint, other: Checkpoint | None, threads: int) -> Report:
    files, counts = find_files([directory]), ReadCounts()
    player = Player({"": loaded}, PlayerOptions(threads))
    against = None if other is None else Player({"": other}, PlayerOptions(threads))
    try:
        return replay(read_captures(files, find_keys(files), counts), counts, player, against)
    finally:
        player.close()
        if against is not None:
            against.close()


def page(result: CaptureResult) -> list[Part]:
    """For people."""
    costs, same = result.costs, result.same
    equal = same["same"]
    assert isinstance(equal, dict)
    rows = [
        ("bytes of a request, all in all", f"{costs.bytes:,.0f}"),
        (
            "bytes of a user's first in a file, and of a later one",
            f"{costs.first_bytes:,.0f}, {costs.later_bytes:,.0f}",
        ),
        ("CPU us on the event loop", f"{costs.loop_us:.1f}"),
        ("CPU us on the writer's thread", f"{costs.writer_us:.0f}"),
        ("bytes left, and CPU us, were all of it deflated", f"{costs.deflated:.0%}, {costs.deflate_us:.0f}"),
        ("dropped", f"{costs.dropped:,}"),
        ("replayed by the same checkpoint, equal to the bit", f"{equal['num']:,}, {equal['equal_to_the_bit']:,}"),
        ("requests a second of that replay", f"{result.options.requests / result.replay_s:,.0f}"),
    ]
    if result.moved is not None and isinstance(moved := result.moved["moved"], dict):
        rows.append(("against the other: top 10 overlap", f"{moved['top10_overlap']:.3f}"))
        rows.append(("against the other: top 1 changed", f"{moved['top1_changed']:.1%}"))
        for task, numbers in moved["tasks"].items():
            rows.append((f"against the other: Spearman of {task}", f"{numbers['spearman_mean']:.4f}"))
    named = asdict(result.options)
    return [
        headline(result.machine, result.commit),
        ", ".join(f"{name} {value}" for name, value in named.items()),
        Table("A captured request", ("what", "value"), rows),
    ]
