"""What a load run found: the ledger of each class added up, its percentiles, and what the driver itself was like."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.load.ledger import Ledger, Outcome
from loadtest.load.traffic import Traffic
from loadtest.load.watched import Watched
from loadtest.report.machine import Machine

LAG_LIMIT_MS, LAG_SHARE = 10.0, 0.25
"""Where the driver's p99 of lateness is above the limit and this share of the p99 of answers, it measures itself."""
NOTES = (
    "latencies count from the intended time of a request, not from when it was sent",
    "goodput: answers right and within the deadline, a second; offered: requests intended, a second",
    "right: all scores, finite, equal to the oracle's where checked; up to 20 ms after the deadline (not in goodput)",
    "errors: a status in their place, in time; late: either of both, later than the deadline and 20 ms",
    "never: nothing until the client gave up; cancelled: by the client, as planned; unsent: the driver came too late",
    "checked: answers held against the oracle, which is the same rank before the load, without a state of the user",
    "latest: ms from the deadline to the last answer or error, below 0 where all came before it",
    "encoded: answers that found no KV state of the whole history",
    "lag: how late the driver sent, which is in every latency",
)


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from the intended time, over so many requests."""

    num: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class ClassReport:
    """One class in one run; see NOTES. by_error: latency of the errors in time by status. latest_ms: after the
    deadline, of whatever was answered.
    """

    traffic: Traffic
    sent: int
    right: int
    errors: dict[str, int]
    late: int
    never: int
    wrong: int
    cancelled: int
    unsent: int
    open: int
    settled_twice: int
    checked: int
    worst_gap: float
    encoded: int
    offered: float
    goodput: float
    answered: Latency | None
    by_error: dict[str, Latency]
    latest_ms: float | None

    @property
    def name(self) -> str:
        """The class and its rate or clients."""
        traffic = self.traffic
        return f"{traffic.name}, {f'{traffic.rate:g}/s' if traffic.rate else f'{traffic.clients} clients'}"

    @property
    def adds_up(self) -> bool:
        """Every request has one outcome."""
        ends = self.right + sum(self.errors.values()) + self.late + self.never + self.wrong
        return self.sent == ends + self.cancelled + self.unsent and not self.open and not self.settled_twice

    @property
    def lost_nothing(self) -> bool:
        """Every request was right, but for those that their client cancelled, and there were some."""
        return self.right > 0 and self.sent == self.right + self.cancelled


@dataclass(frozen=True, slots=True)
class Run:
    """Some classes side by side. cores: that the driver's own process used. stopped: before its time was up.

    watched: the server meanwhile, if somebody looked.
    """

    seconds: float
    stopped: bool
    lag_p99_ms: float
    lag_max_ms: float
    cores: float
    classes: tuple[ClassReport, ...]
    watched: Watched | None = None

    @property
    def main(self) -> ClassReport:
        """The class whose rate was asked for."""
        return self.classes[0]

    @property
    def driver_was_late(self) -> bool:
        """The driver was the bottleneck: its own lateness is a part of what it measured."""
        p99_ms = self.main.answered.p99_ms if self.main.answered else 0.0
        return self.lag_p99_ms > max(LAG_LIMIT_MS, LAG_SHARE * p99_ms) or any(one.unsent for one in self.classes)


@dataclass(frozen=True, slots=True)
class Found:
    """The highest rate whose p99 is within a bound and of which nothing is lost lies between two that were measured.

    holds: None if the lowest that was tried is too high. fails: None if the highest that was tried holds.
    """

    p99_ms: float
    holds: float | None
    fails: float | None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Everything that `mfalcon loadtest --rate` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    command: str
    notes: tuple[str, ...]
    target: str
    model: str
    version: str
    backend: str
    seed: int
    unknown_share: float
    runs: tuple[Run, ...]
    found: Found | None
    undeleted: tuple[str, ...]
    complaints: tuple[str, ...]
    warnings: tuple[str, ...]


def class_report(traffic: Traffic, ledger: Ledger, seconds: float) -> ClassReport:
    """A ledger added up. seconds: of sending; those of a closed loop last until its last answer."""
    counts = ledger.counts
    if traffic.clients and len(ledger):
        last = max(entry.ended or 0.0 for entry in ledger)
        seconds = max(seconds, last - min(entry.intended for entry in ledger))
    answered, by_error, ends_ms = [], defaultdict(list), []
    for entry in ledger:
        if entry.ended is None or entry.outcome in (Outcome.CANCELLED, Outcome.UNSENT, Outcome.NEVER):
            continue
        milliseconds = (entry.ended - entry.intended) * 1e3
        ends_ms.append(milliseconds)
        if entry.outcome is Outcome.ERROR:
            by_error[entry.code].append(milliseconds)
        elif not entry.code:
            answered.append(milliseconds)
    in_time = sum(entry.in_time(traffic.within_s) for entry in ledger)
    return ClassReport(
        traffic=traffic,
        sent=len(ledger),
        right=counts[Outcome.RIGHT],
        errors={code: len(times) for code, times in sorted(by_error.items())},
        late=counts[Outcome.LATE],
        never=counts[Outcome.NEVER],
        wrong=counts[Outcome.WRONG],
        cancelled=counts[Outcome.CANCELLED],
        unsent=counts[Outcome.UNSENT],
        open=counts[Outcome.OPEN],
        settled_twice=ledger.settled_twice,
        checked=ledger.num_checked,
        worst_gap=ledger.worst_gap,
        encoded=ledger.num_encoded,
        offered=len(ledger) / seconds,
        goodput=in_time / seconds,
        answered=latency(answered),
        by_error={code: found for code, times in sorted(by_error.items()) if (found := latency(times))},
        latest_ms=max(ends_ms) - traffic.deadline_ms if ends_ms and traffic.deadline_ms else None,
    )


def latency(milliseconds: Sequence[float]) -> Latency | None:
    """Percentiles, if there is anything."""
    if not milliseconds:
        return None
    p50, p90, p99, p999, most = np.percentile(milliseconds, (50, 90, 99, 99.9, 100)).tolist()
    return Latency(len(milliseconds), p50, p90, p99, p999, most)


def lag_ms(ledgers: Iterable[Ledger]) -> tuple[float, float]:
    """p99 and worst of how late requests were sent."""
    lags = [(entry.sent - entry.intended) * 1e3 for ledger in ledgers for entry in ledger if entry.sent is not None]
    p99, most = np.percentile(lags or [0.0], (99, 100)).tolist()
    return p99, most


def complaints_of(runs: Sequence[Run]) -> Iterator[str]:
    """Why a load fails: nothing was answered, or a request wrongly, never, or more than once."""
    for run in runs:
        if not any(one.answered for one in run.classes):
            yield f"{run.main.name}: of {sum(one.sent for one in run.classes)} requests none was answered with scores"
        for one in run.classes:
            if not one.adds_up:
                yield f"{one.name}: of {one.sent} requests {one.open} have no end, {one.settled_twice} have two"
            if one.wrong:
                yield f"{one.name}: {one.wrong} wrong answers"
            if one.never:
                yield f"{one.name}: {one.never} requests were never answered"


def warnings_of(runs: Sequence[Run], unknown_share: float, undeleted: Sequence[str]) -> Iterator[str]:
    """What a reader of the figures must know."""
    for run in runs:
        if run.driver_was_late:
            unsent = sum(one.unsent for one in run.classes)
            yield (
                f"{run.main.name}: the driver was the bottleneck, and its lateness is in the latencies: p99 "
                f"{run.lag_p99_ms:.0f} ms, at most {run.lag_max_ms:.0f} ms, {unsent} unsent"
            )
        for one in run.classes:
            if one.encoded and not one.traffic.cold_share:
                yield f"{one.name}: {one.encoded} answers did not find the state of the whole history"
    if unknown_share:
        yield f"the model does not know {unknown_share:.0%} of the candidates; --checkpoint gives the ids that it knows"
    if undeleted:
        yield f"{len(undeleted)} users could not be deleted, {undeleted[0]} to {undeleted[-1]}"
