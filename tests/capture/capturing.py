"""Engines that capture what they answer, and what they wrote, for the tests of captures and of their replay."""

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mfalcon.capture.capture import Capture, CaptureOptions
from mfalcon.capture.files import FileLimits
from mfalcon.capture.keys import NAME
from mfalcon.capture.reader import Captured, ReadCounts, find_files, find_keys, read_captures
from mfalcon.engine.compose import EngineConfig, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.ensemble import EnsembleOptions
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models.checkpoint import Checkpoint

SECONDS = 60
LIMITS = FileLimits(budget_bytes=1 << 30, file_bytes=64 << 20, max_age_s=86_400.0)


def tag(user_id: str) -> str:
    return f"tag of {user_id}"


def options(directory: Path, **changed: object) -> CaptureOptions:
    """Every request, unless it is said otherwise."""
    return dataclasses.replace(
        CaptureOptions(directory, tag, sample=1.0, limits=LIMITS),
        **changed,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def capturing(
    capture: CaptureOptions | None,
    *checkpoints: Checkpoint,
    histories: HistoryOptions | None = None,
    ensembles: tuple[EnsembleOptions, ...] = (),
) -> AsyncIterator[Engine]:
    """An engine of models, by the names of their checkpoints' configurations or m0, m1 where there are several."""
    metrics = ServerMetrics()
    many = len(checkpoints) > 1
    models = [
        (checkpoint, RankerOptions(name=f"m{at}" if many else None, microbatch=16, kv_budget_bytes=16 << 20))
        for at, checkpoint in enumerate(checkpoints)
    ]
    config = EngineConfig(threads=1, histories=histories or HistoryOptions())
    writer = None if capture is None else Capture(capture, metrics.captures)
    engine = compose_all(models, config, metrics, ensembles, None, writer)
    await asyncio.to_thread(engine.wait_ready, SECONDS)
    await engine.start()
    try:
        yield engine
    finally:
        await asyncio.wait_for(engine.close(), SECONDS)


def read_all(*paths: Path, keys: Path | None = None) -> tuple[list[Captured], ReadCounts]:
    """What captures hold."""
    counts = ReadCounts()
    files = find_files(paths)
    return list(read_captures(files, find_keys(files, keys), counts)), counts


def counted(metrics: ServerMetrics, name: str, **labels: str) -> float:
    """A metric's value, 0 where it has not moved."""
    return metrics.registry.get_sample_value(name, labels) or 0.0


async def until_written(engine: Engine, num: int) -> None:
    """Return once so many requests are in files."""
    async with asyncio.timeout(SECONDS):
        while counted(engine.metrics, "mfalcon_captured_total") < num:  # noqa: ASYNC110 (a thread tells nobody)
            await asyncio.sleep(0.01)


def capture_threads() -> int:
    return sum(thread.name == "capture" for thread in threading.enumerate())


def key_file(directory: Path) -> Path:
    return directory / NAME
