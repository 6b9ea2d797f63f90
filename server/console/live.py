"""What the console shows of /metrics: the same numbers, of the whole server with its front-ends, as compact JSON."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

COUNTERS: Final = (
    "mfalcon_host_evicted",
    "mfalcon_partial",
    "mfalcon_redis_breaker_opened",
    "mfalcon_redis_errors",
    "mfalcon_reloads",
    "mfalcon_requests",
    "mfalcon_state_lookups",
    "mfalcon_unanswered",
    "process_cpu_seconds",
)
GAUGES: Final = (
    "mfalcon_backend",
    "mfalcon_device_bytes",
    "mfalcon_device_heartbeat_seconds",
    "mfalcon_host_bytes",
    "mfalcon_log_bytes",
    "mfalcon_log_events",
    "mfalcon_log_users",
    "mfalcon_pool_bytes",
    "mfalcon_pool_free_bytes",
    "mfalcon_queue_jobs",
    "mfalcon_queue_seconds",
    "mfalcon_redis_breaker_open",
    "process_resident_memory_bytes",
    "process_threads",
)
HISTOGRAMS: Final = ("mfalcon_loop_lag_seconds", "mfalcon_request_seconds", "mfalcon_stage_seconds")
_SAMPLE: Final = re.compile(
    rf"^({'|'.join(COUNTERS)}|{'|'.join(GAUGES)}|{'|'.join(HISTOGRAMS)})(_total|_bucket|_sum)?(?:{{(.*)}})? (\S+)$",
    re.MULTILINE,
)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED: Final = re.compile(r"\\(.)")
SHORTEST_S: Final = 0.5
"""Time for which a snapshot is the present one, however many pages ask."""

Snapshot = dict[str, Any]
Labels = tuple[tuple[str, str], ...]


def snapshot(text: str) -> Snapshot:
    """What Prometheus' text format says of the metrics above. values: rows [labels, value] by name of a counter
    (without its _total) or gauge. histograms: by name the upper bounds of its buckets, the last of which has none, and
    rows [labels, counts up to each bound, sum].
    """
    values: dict[str, dict[Labels, float]] = {}
    buckets: dict[str, dict[Labels, dict[str, float]]] = {}
    sums: dict[str, dict[Labels, float]] = {}
    # The client library's parser takes four times as long (10 ms), which requests beside it would feel.
    for name, suffix, labelled, number in _SAMPLE.findall(text):
        labels, value = _labels(labelled), float(number)
        if suffix == "_bucket":
            bound = next(text for label, text in labels if label == "le")
            others = tuple(pair for pair in labels if pair[0] != "le")
            counts = buckets.setdefault(name, {}).setdefault(others, {})
            counts[bound] = counts.get(bound, 0.0) + value
        else:
            rows = (sums if suffix == "_sum" else values).setdefault(name, {})
            rows[tuple(labels)] = rows.get(tuple(labels), 0.0) + value
    return {
        "values": {name: [[dict(labels), value] for labels, value in rows.items()] for name, rows in values.items()},
        "histograms": {
            name: {
                "bounds": [float(bound) for bound in next(iter(rows.values())) if bound != "+Inf"],
                "rows": [
                    [dict(labels), list(counts.values()), sums.get(name, {}).get(labels, 0.0)]
                    for labels, counts in rows.items()
                ],
            }
            for name, rows in buckets.items()
        },
    }


def _labels(text: str) -> list[tuple[str, str]]:
    if "\\" not in text:
        return _LABEL.findall(text)
    return [(name, _ESCAPED.sub(_unescaped, value)) for name, value in _LABEL.findall(text)]


def _unescaped(escaped: re.Match[str]) -> str:
    return "\n" if escaped[1] == "n" else escaped[1]


class Live:
    """Answers every page that asks with one snapshot at a time. Lives on one event loop."""

    def __init__(self, scrape: Callable[[], Awaitable[bytes]]) -> None:
        """scrape: gives the metrics in Prometheus' text format."""
        self._scrape = scrape
        self._asking = asyncio.Lock()
        self._taken_at = float("-inf")
        self._last: Snapshot = {}

    async def now(self) -> Snapshot:
        """A snapshot that is `SHORTEST_S` old at most, with the age of the clock that its differences are taken by
        (at_s: seconds of no certain origin).
        """
        async with self._asking:
            if time.monotonic() - self._taken_at > SHORTEST_S:
                taken_at = time.monotonic()
                text = await self._scrape()
                found = await asyncio.to_thread(snapshot, text.decode())
                self._taken_at, self._last = taken_at, {"at_s": taken_at, **found}
            return self._last
