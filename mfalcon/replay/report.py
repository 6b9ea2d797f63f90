"""A whole replay: captured requests through one checkpoint, or two in turns, and what is to be told of it."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np

from mfalcon.capture.reader import Captured, ReadCounts
from mfalcon.replay.compare import Comparison, Worst, moved, percentiles
from mfalcon.replay.player import Played, Player
from mfalcon.types import Floats

_TURN: Final = 64
"""Requests that one checkpoint is given before it is the other's turn: both meet the machine as it is then."""


@dataclass(slots=True)
class Same:
    """Requests that were answered by the checkpoint and the kernel that they are played with. partial: answered
    without some member of an ensemble, which is not expected again. worst_error: in units of the largest score beyond
    1.
    """

    num: int = 0
    num_equal: int = 0
    worst_error: float = 0.0
    partial: int = 0


@dataclass(slots=True)
class Report:
    """What a replay has found. captured: what was captured against the checkpoint; None where no scores were. moved:
    the checkpoint against the other one; None without one.
    """

    checkpoint: Player
    against: Player | None
    counts: ReadCounts
    captured: Comparison | None = None
    moved: Comparison | None = None
    same: Same = field(default_factory=Same)
    versions: Counter[str] = field(default_factory=Counter)
    num: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    unread: int = 0
    without_counters: int = 0
    took_us: dict[str, list[int]] = field(default_factory=lambda: {"captured": [], "checkpoint": [], "against": []})
    reused: Counter[str] = field(default_factory=Counter)

    @property
    def holds(self) -> bool:
        """Whether what was answered by this very checkpoint and kernel came out again: to the bit where law 7 promises
        it, within the rounding of the type elsewhere.
        """
        same = self.same
        return same.num == same.num_equal or (
            not self.checkpoint.is_exact and same.worst_error <= self.checkpoint.bound
        )

    def told(self) -> dict[str, object]:
        """For programs."""
        counts = self.counts
        return {
            "holds": self.holds,
            "num": self.num,
            "checkpoint": _who(self.checkpoint),
            "against": None if self.against is None else _who(self.against),
            "capture": {
                "files": counts.files,
                "read": counts.read,
                "locked": counts.locked,
                "forged": counts.forged,
                "no_history": counts.no_history,
                "unfit": counts.unfit,
                "damaged_frames": counts.damage.frames,
                "gaps": counts.damage.gaps,
                "cut_bytes": counts.damage.cut_bytes,
                "refused": counts.refused,
                "answered_by": dict(self.versions),
            },
            "same": {
                "num": self.same.num,
                "equal_to_the_bit": self.same.num_equal,
                "promised_to_the_bit": self.checkpoint.is_exact,
                "worst_error": self.same.worst_error,
                "partial": self.same.partial,
            },
            "captured": None if self.captured is None else self.captured.told(),
            "moved": None if self.moved is None else self.moved.told(),
            "latency": {name: percentiles(took) for name, took in self.took_us.items() if took},
            "reused_tokens": dict(self.reused),
            "failed": dict(self.failed),
            "unread_context_values": self.unread,
            "requests_without_counters": self.without_counters,
        }


def replay(
    requests: Iterable[Captured],
    counts: ReadCounts,
    checkpoint: Player,
    against: Player | None = None,
    most_worst: int = 10,
) -> Report:
    """Play requests, all of them once by each."""
    report, left = Report(checkpoint, against, counts), iter(requests)
    while turn := list(islice(left, _TURN)):
        answers = list(checkpoint.play(turn))
        others: Iterator[Played | None] = iter([None] * len(turn))
        if against is not None:
            others = iter([played for _, played in against.play(turn)])
        for (captured, played), other in zip(answers, others, strict=True):
            _note(report, captured, played, other, most_worst)
    return report


def _note(report: Report, captured: Captured, played: Played, other: Played | None, most_worst: int) -> None:
    report.num += 1
    raw = captured.raw
    report.versions[f"{raw.model}@{raw.version}"] += 1
    timings = raw.answered.timings
    report.took_us["captured"].append(timings.state_us + timings.features_us + timings.encode_us + timings.score_us)
    for side, answer in (("checkpoint", played), ("against", other)):
        if answer is None:
            continue
        if answer.error:
            report.failed[f"{side}: {answer.error}"] += 1
            continue
        report.took_us[side].append(answer.compute_us)
        report.reused[side] += answer.reused_tokens
    report.unread += played.unread
    report.without_counters += played.without_counters or (other is not None and other.without_counters)
    if played.error:
        return
    if captured.scores is not None and captured.task_scores is not None and len(captured.scores):
        _against_captured(report, captured, captured.scores, captured.task_scores, played, most_worst)
    if other is not None and not other.error and report.against is not None:
        _against_other(report, captured, played, other, report.against, most_worst)


def _against_captured(
    report: Report, captured: Captured, scores: Floats, task_scores: Floats, played: Played, most_worst: int
) -> None:
    """What was captured against what is played, for as many candidates as had a score then."""
    num, info, raw = len(scores), captured.info, captured.raw
    names = tuple(task.name for task in report.checkpoint.tasks)
    theirs = info.tasks if info is not None and len(info.tasks) == len(task_scores) else names
    common = tuple(name for name in names if name in theirs)
    if len(theirs) != len(task_scores) or not common:
        report.failed["captured: it has other tasks"] += 1
        return
    if report.captured is None:
        report.captured = Comparison(common, most_worst)
    if report.captured.tasks != common:
        report.failed["captured: it has other tasks than those before"] += 1
        return
    was = task_scores[[theirs.index(name) for name in common]]
    now = played.task_scores[[names.index(name) for name in common], :num]
    one = moved(scores, was, played.scores[:num], now)
    report.captured.add(one, raw.answered.source, _worst(captured, one.top_overlap, one.spearman, one.max_error))
    if raw.version != report.checkpoint.version or theirs != names:
        return
    is_ensemble = info is not None and info.ensemble is not None
    if info is not None and not is_ensemble and info.backend != report.checkpoint.backend:
        return
    if raw.answered.partial_merge:
        report.same.partial += 1
        return
    report.same.num += 1
    report.same.num_equal += one.is_equal
    unit = np.maximum(1.0, np.abs(was.astype(np.float64)).max(axis=1))
    report.same.worst_error = max(report.same.worst_error, float((np.array(one.max_error) / unit).max()))


def _against_other(
    report: Report, captured: Captured, played: Played, other: Played, against: Player, most_worst: int
) -> None:
    names, theirs = ([task.name for task in player.tasks] for player in (report.checkpoint, against))
    common = tuple(name for name in names if name in theirs)
    if report.moved is None:
        report.moved = Comparison(common, most_worst)
    one = moved(
        played.scores,
        played.task_scores[[names.index(name) for name in common]],
        other.scores,
        other.task_scores[[theirs.index(name) for name in common]],
    )
    source = captured.raw.answered.source
    report.moved.add(one, source, _worst(captured, one.top_overlap, one.spearman, one.max_error))


def _worst(captured: Captured, overlap: float, correlations: tuple[float, ...], errors: tuple[float, ...]) -> Worst:
    raw, known = captured.raw, [value for value in correlations if not np.isnan(value)]
    return Worst(
        raw.user,
        raw.request_id,
        raw.time_ms,
        raw.model,
        len(captured.request.candidates),
        len(captured.history),
        overlap,
        min(known) if known else None,
        max(errors, default=0.0),
    )


def _who(player: Player) -> dict[str, object]:
    return {
        "name": player.name,
        "version": player.version,
        "backend": player.backend,
        "tasks": [task.name for task in player.tasks],
    }
