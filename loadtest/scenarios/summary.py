"""Counts what the clients of a scenario report, and writes its figures as JSON."""

import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import locust.env
import numpy as np

from loadtest.report.machine import commit, this_machine
from loadtest.report.result import write_json
from loadtest.scenarios.result import Row, ScenarioResult


@dataclass(slots=True)
class _Counts:
    milliseconds: list[float] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    encoded: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Summary:
    """Counts what the clients of this process report to Locust."""

    def __init__(self, environment: locust.env.Environment, scenario: str) -> None:
        self._environment = environment
        self._scenario = scenario
        self._counts: defaultdict[str, _Counts] = defaultdict(_Counts)
        self._began = self._last = time.monotonic()
        self.version = ""
        environment.events.request.add_listener(self._count)
        environment.events.quitting.add_listener(self._write)

    def begin(self) -> None:
        """The first request comes now."""
        self._began = time.monotonic()

    def _count(
        self, name: str, response_time: float, exception: Exception | None, context: dict[str, Any], **_: object
    ) -> None:
        counts, self._last = self._counts[name], time.monotonic()
        if exception is not None:
            counts.errors[getattr(exception, "code", type(exception).__name__)] += 1
            return
        counts.milliseconds.append(response_time)
        if "source" in context:
            counts.sources[context["source"]] += 1
            counts.encoded += context["encoded_tokens"] > 0

    def _write(self, **_: object) -> None:
        options = self._environment.parsed_options
        assert options is not None
        if not any(counts.milliseconds for counts in self._counts.values()):
            # Locust counts failures, and a server that nobody reached in time has none.
            print(f"error: no request was answered by {self._environment.host}", file=sys.stderr)
            self._environment.process_exit_code = 1
        if options.summary_file:
            write_json(Path(options.summary_file), self._result(options.clients))

    def _result(self, clients: int) -> ScenarioResult:
        seconds = max(1e-3, self._last - self._began)
        return ScenarioResult(
            benchmark="scenario",
            machine=this_machine(),
            commit=commit(),
            scenario=self._scenario,
            target=str(self._environment.host),
            version=self.version,
            clients=clients,
            seconds=seconds,
            rows=tuple(_row(name, self._counts[name], seconds) for name in sorted(self._counts)),
        )


def _row(name: str, counts: _Counts, seconds: float) -> Row:
    p50, p95, p99, most = np.percentile(counts.milliseconds or [0.0], (50, 95, 99, 100)).tolist()
    return Row(
        name=name,
        answered=len(counts.milliseconds),
        per_second=len(counts.milliseconds) / seconds,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=most,
        sources=dict(sorted(counts.sources.items())),
        encoded=counts.encoded,
        errors=dict(sorted(counts.errors.items())),
    )
