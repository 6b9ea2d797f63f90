"""The access log: a line of JSON for each request that ended, or for those alone that failed or were slow.

Lines are made and written by a thread (`server/line_writer.py`); what the event loop does for one is to pick the facts.
docs/observability.md lists the fields, which keep their names.
"""

import random
import time
from pathlib import Path
from typing import Any

import orjson

from mfalcon.metrics.line_metrics import LineMetrics
from mfalcon.pseudonym import user_tag
from mfalcon.types import RankResult
from server.arrivals import Arrival
from server.line_writer import LineWriter
from server.settings.observability import OFF, STDERR, AccessLogOptions

Record = dict[str, Any]


class AccessLog:
    """Of one process. Lives on the event loop."""

    def __init__(self, options: AccessLogOptions, metrics: LineMetrics) -> None:
        """Raises ConfigError for a file that cannot be written."""
        path = None if options.place in (OFF, STDERR) else Path(options.place)
        self._logs_all = options.place != OFF
        self._sample = options.sample
        self._slow_s = options.slow_s or float("inf")
        self._lines = LineWriter(path, line_of, metrics)

    def ended(self, arrival: Arrival, transport: str, code: str, took_s: float, *, answered: bool) -> None:
        """A request has ended, and took so long from its whole message on."""
        is_slow = took_s > self._slow_s
        if not is_slow:
            if not self._logs_all:
                return
            if answered and self._sample < 1 and random.random() >= self._sample:
                return
        self._lines.write(_record(arrival, transport, code, took_s, answered=answered, is_slow=is_slow))

    def reopen(self) -> None:
        """Go on in the file that has the name now."""
        self._lines.reopen()

    def close(self) -> None:
        """Write what waits, within a second."""
        self._lines.close()


def access_log(options: AccessLogOptions, metrics: LineMetrics) -> AccessLog | None:
    """None where nothing is to be logged."""
    return AccessLog(options, metrics) if options.place != OFF or options.slow_s else None


def _record(arrival: Arrival, transport: str, code: str, took_s: float, *, answered: bool, is_slow: bool) -> Record:
    """The facts of a request; what is not known of it is left out."""
    scope, result = arrival.scope, arrival.result
    record: Record = {
        "time": time.time(),
        "request_id": scope.request_id,
        "transport": transport,
        "verb": arrival.verb,
        "code": code,
        "answered": answered,
        "slow": is_slow,
        "took_us": round(1e6 * took_s),
        "receive_us": round(1e6 * (arrival.began - arrival.arrived)),
        "bytes_in": arrival.bytes_in,
        "bytes_out": arrival.bytes_out,
    }
    if arrival.span is not None:
        context = arrival.span.get_span_context()
        record |= {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    if arrival.granted_s is not None:
        record["deadline_ms"] = round(1e3 * arrival.granted_s)
    known: Record = {
        "caller": arrival.caller,
        "model": arrival.model,
        "user": arrival.user_id,
        "candidates": arrival.num_candidates,
        "events": arrival.num_events,
        "parts": dict(arrival.parts or {}),
    }
    record |= {name: value for name, value in known.items() if value}
    if arrival.first_part is not None:
        record["first_part_us"] = round(1e6 * (arrival.first_part - arrival.began))
    if scope.history_len >= 0:
        record["history_len"] = scope.history_len
    if arrival.asked is not None:
        record["stages_us"] = _stages(arrival, result, arrival.began + took_s)
    if scope.decision:
        record["decision"] = scope.decision
    if result is not None:
        record |= {
            "model_version": result.model_version,
            "scored": len(result.scores),
            "history_len": result.history_len,
            "stale": result.stale,
            "cache": result.cache.source.name.lower(),
            "reused_tokens": result.cache.reused_tokens,
            "encoded_tokens": result.cache.encoded_tokens,
        }
    return record


def _stages(arrival: Arrival, result: RankResult | None, ended: float) -> dict[str, int]:
    """Where the time of a rank went that ended then, in microseconds. Of one that failed the device's part is not
    split, and engine is all of it.
    """
    scope, asked = arrival.scope, arrival.asked
    assert asked is not None
    stages = {
        "admission": round(1e6 * (asked - arrival.began)),
        "log": round(1e6 * scope.log_s),
        "fetch": round(1e6 * scope.fetch_s),
    }
    if result is None:
        stages |= {"device": round(1e6 * scope.device_s), "engine": round(1e6 * (ended - asked))}
        return stages
    timings = result.timings
    stages |= {
        "queue": timings.queue_us,
        "features": timings.features_us,
        "state": timings.state_us,
        "encode": timings.encode_us,
        "score": timings.score_us,
        "merge": timings.merge_us,
        "rerank": timings.rerank_us,
    }
    if arrival.told is not None:
        stages["reply"] = round(1e6 * (ended - arrival.told))
    return stages


def line_of(record: Record) -> bytes:
    """One line of JSON. On the thread that writes: the loop has better things to do than to hash and to serialise."""
    seconds = record["time"]
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    told = record | {"time": f"{at}.{int(seconds % 1 * 1000):03d}Z"}
    if "user" in record:
        told["user"] = user_tag(record["user"])
    return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)
