"""What a chaos run found: the clients' records, held against the oracle and summed up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.faults.chaos_client import Records
from loadtest.faults.oracle import BOUND, Answer

LATE_S = 0.05
"""An answer may come this much after its deadline; more is late."""
EXPECTED = frozenset({"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"})
"""Statuses that a fault may cause, and the refusal of a write that had been made. Others are violations, and without a
fault so is UNAVAILABLE.
"""

_MOST_COMPLAINTS = 20


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """What came back.

    statuses: calls by "Method STATUS". sources: answered Ranks by tier. faults: by kind.
    appends: acknowledged ones by how: at once, repeated after an unknown outcome, or found written by one.
    mixes: appends that raced, ranks during a delete, ranks with recent events.
    checked: Rank answers that were compared; final: those from after the last fault, every user on every replica.
    stale: answers that say they are, which no replica that refuses to be may give.
    wrong: answers of another length than was acknowledged, or with a score further than the bound from the oracle's.
    lost: users whose log lacks an event, or has one too many. unresolved: writes and last Ranks without an end.
    unanswered: calls that neither returned nor raised. unexpected: calls whose status no fault explains.
    late: calls that ended more than 50 ms after their deadline; latest_ms: the worst. stall_ms: the longest that a
    thread of the client's which only sleeps was held up, so what of that may be the machine's.
    exited: servers that ended by themselves. complaints: the first violations in words.
    p50_ms, p99_ms, max_ms: of the trace's answered Ranks, without those that ask for every user in the end.
    """

    seconds: float
    requests: int
    statuses: dict[str, int]
    sources: dict[str, int]
    appends: dict[str, int]
    mixes: dict[str, int]
    faults: dict[str, int]
    checked: int
    final: int
    stale: int
    wrong: int
    worst_error: float
    lost: int
    unresolved: int
    unanswered: int
    unexpected: int
    late: int
    latest_ms: float
    stall_ms: float
    exited: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    complaints: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Every call answered in time, every score and every length right, no event lost or doubled."""
        return self.checked > 0 and not (
            self.stale
            or self.wrong
            or self.lost
            or self.unresolved
            or self.unanswered
            or self.unexpected
            or self.late
            or self.exited
        )


def report(
    records: Sequence[Records],
    errors: Mapping[Answer, float],
    *,
    seconds: float,
    deadline_s: float,
    stall_s: float,
    num_final: int,
    faults: Mapping[str, int],
    exited: Sequence[str],
) -> ChaosReport:
    """errors: the oracle's difference of each answer. num_final: answers from after the last fault."""
    wrong = [complaint for record in records for complaint in _wrong(record, errors)]
    lost = [text for record in records for text in record.lost]
    unresolved = [text for record in records for text in record.unresolved]
    logs = [log for record in records for log in (record.calls, record.last_calls)]
    calls = [call for log in logs for call in log.ended]
    expected = EXPECTED if faults else EXPECTED - {"UNAVAILABLE"}
    overdue_s = [call.seconds - deadline_s for call in calls]
    traced = (call for record in records for call in record.calls.ended)
    rank_ms = [call.seconds * 1e3 for call in traced if (call.method, call.status) == ("Rank", "OK")]
    p50, p99, longest = np.percentile(rank_ms, [50, 99, 100]) if rank_ms else (0.0, 0.0, 0.0)
    return ChaosReport(
        seconds=seconds,
        requests=sum(log.sent for log in logs),
        statuses=dict(sorted(Counter(f"{call.method} {call.status}" for call in calls).items())),
        sources=dict(sum((record.sources for record in records), Counter[str]())),
        appends=dict(sum((record.appends for record in records), Counter[str]())),
        mixes=dict(sum((record.mixes for record in records), Counter[str]())),
        faults=dict(faults),
        checked=len(errors),
        final=num_final,
        stale=sum(record.stale for record in records),
        wrong=len(wrong),
        worst_error=max(errors.values(), default=0.0),
        lost=len(lost),
        unresolved=len(unresolved),
        unanswered=sum(log.sent - len(log.ended) for log in logs),
        unexpected=sum(call.status not in expected for call in calls),
        late=sum(overdue > LATE_S for overdue in overdue_s),
        latest_ms=max([0.0, *overdue_s]) * 1e3,
        stall_ms=stall_s * 1e3,
        exited=len(exited),
        p50_ms=float(p50),
        p99_ms=float(p99),
        max_ms=float(longest),
        complaints=tuple([*lost, *unresolved, *exited, *wrong][:_MOST_COMPLAINTS]),
    )


def _wrong(record: Records, errors: Mapping[Answer, float]) -> list[str]:
    found = []
    for answer, length in zip(record.answers, record.lengths, strict=True):
        if length != answer.length:
            found.append(f"{answer.where}: history_len {length}, acknowledged are {answer.length}")
        elif not errors[answer] <= BOUND:
            found.append(f"{answer.where}: a score is {errors[answer]:.1e} from the oracle's, {length} events")
    return found
