"""What of an answer is sent back, where a request wants less than all of it."""

from dataclasses import dataclass, replace

import numpy as np

from mfalcon.types import Floats, MemberResult, Positions, RankResult, Returns


@dataclass(frozen=True, slots=True)
class Returned:
    """The parts of a `RankResult` that are large, for the wire. Where the best candidates alone are returned, all of it
    is of these: scores [num_returned] and task_scores [num_tasks, num_returned] in their order, and of the positions
    `unknown` and `failed` those that are among them.
    """

    scores: Floats
    task_scores: Floats
    unknown: Positions
    failed: Positions
    members: tuple[MemberResult, ...]

    @classmethod
    def of(cls, result: RankResult, returns: Returns) -> "Returned":
        """What a request wants of an answer."""
        if returns != "top":
            return cls(result.scores, result.task_scores, result.unknown, result.failed, result.members)
        top = result.top
        return cls(
            result.scores[top],
            result.task_scores[:, top],
            _among(result.unknown, top),
            _among(result.failed, top),
            tuple(_of_member(member, top) for member in result.members),
        )

    @classmethod
    def without_scores(cls, result: RankResult) -> "Returned":
        """What is left of an answer whose scores were sent before it."""
        none = np.empty(0, dtype=np.float32)
        return cls(none, none.reshape(len(result.tasks), 0), result.unknown, result.failed, result.members)


def _among(positions: Positions, top: Positions) -> Positions:
    return positions[np.isin(positions, top)]


def _of_member(member: MemberResult, top: Positions) -> MemberResult:
    if not member.unknown and not member.failed:
        return member
    best = frozenset(top.tolist())
    unknown, failed = (tuple(at for at in positions if at in best) for positions in (member.unknown, member.failed))
    return replace(member, unknown=unknown, failed=failed)
