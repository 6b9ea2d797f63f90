"""The figures of a scenario: requests a second, percentiles, where states were found, errors by code."""

from dataclasses import dataclass

from loadtest.report.machine import Machine


@dataclass(frozen=True, slots=True)
class Row:
    """Requests of one name. per_second: that were answered. Times in milliseconds, of answers.

    sources: answers by the tier in which the state was found; encoded: those for which some history was encoded.
    """

    name: str
    answered: int
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    sources: dict[str, int]
    encoded: int
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """Everything that one run of a scenario tells."""

    benchmark: str
    machine: Machine
    commit: str | None
    scenario: str
    target: str
    version: str
    clients: int
    seconds: float
    rows: tuple[Row, ...]
