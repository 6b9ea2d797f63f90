"""Event logs on one machine for the tests of what all of them promise."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry

from mfalcon.history.budget import LogBudget
from mfalcon.history.deletions import Deletion
from mfalcon.history.file_log import FileLog, FileLogOptions
from mfalcon.history.history import Retention
from mfalcon.history.local_log import LocalLog
from mfalcon.metrics.logs import LogMetrics
from mfalcon.metrics.states import StateMetrics

KINDS = ("memory", "file", "file-fsync")
RETENTION = Retention(max_events=70, slack=32)
AnyLog = LocalLog | FileLog


@dataclass(slots=True)
class Opened:
    """A log, what it counts, and whom it has evicted."""

    log: AnyLog
    registry: CollectorRegistry
    evicted: list[Deletion] = field(default_factory=list)

    def sample(self, name: str, **labels: str) -> float:
        """The value of a metric of the log."""
        value = self.registry.get_sample_value(f"mfalcon_log_{name}", labels)
        assert value is not None
        return value


@asynccontextmanager
async def opened(
    kind: str,
    directory: Path,
    budget: LogBudget | None = None,
    cache_bytes: int = 1 << 20,
    clock: Callable[[], float] | None = None,
    step_s: int = 0,
    on_damage: Literal["refuse", "start-empty"] = "refuse",
) -> AsyncIterator[Opened]:
    """An open log of a kind; `cache_bytes` of histories stay objects."""
    registry, evicted = CollectorRegistry(), list[Deletion]()
    metrics, states = LogMetrics(registry), StateMetrics()
    log: AnyLog
    if kind == "memory":
        more = {} if clock is None else {"clock": clock}
        log = LocalLog(RETENTION, budget, metrics, evicted.append, in_use_bytes=cache_bytes, **more)
    else:
        options = FileLogOptions(
            directory, "fsync" if kind == "file-fsync" else "memory", cache_bytes, step_s, on_damage
        )
        log = FileLog(options, budget or LogBudget(), RETENTION, states, metrics, evicted.append)
    log.start()
    try:
        yield Opened(log, registry, evicted)
    finally:
        await log.close()
