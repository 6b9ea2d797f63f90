"""Whether recorded appends, reads and deletions of users' histories are linearizable, and every outcome was told truly.

As in Elle (Kingsbury and Alvaro, VLDB 2020): every event is unique, so a version, the chained hash that answers bear,
names one history, which is made again from what was sent. Those of one life must include one another; that is an order,
and the clock must not contradict it. It cannot judge a trimmed history, nor an append repeated after a deletion.
"""

import math
from bisect import bisect, insort
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise, product

import numpy as np

from loadtest.faults.recording import Operation, includes, states_of
from mfalcon.history.history import no_history

_KINDS = ("read", "delete", "append")


def violations(operations: Iterable[Operation], may_lose: Sequence[tuple[float, float]] = ()) -> list[str]:
    """What is wrong with a recording, in words. may_lose: times between which a log may be rolled back."""
    by_user = groupby(sorted(operations, key=lambda o: o.user), key=lambda o: o.user)
    return [f"{user}: {what}" for user, mine in by_user for what in _User(user, [*mine], may_lose).wrong()]


@dataclass(slots=True)
class _Line:
    """Versions of states of which each includes those before it, as in one life. seen: the operations that told."""

    versions: list[bytes]
    seen: list[Operation]

    def since(self) -> float:
        return min(o.ended for o in self.seen)

    def until(self, versions: Container[bytes]) -> float:
        return max((o.began for o in self.seen if o.version in versions), default=-math.inf)


class _User:
    def __init__(self, user: str, operations: list[Operation], may_lose: Sequence[tuple[float, float]]) -> None:
        self.may_lose = may_lose
        self.empty = no_history(user)
        self.states = {self.empty.version: self.empty}
        self.attempts: dict[str, list[Operation]] = defaultdict(list)
        for o in (o for o in operations if o.kind == "append"):
            self.attempts[o.append_id or f"of {sorted(o.items)}"].append(o)
        self.sent = {item: attempts[0].items for attempts in self.attempts.values() for item in attempts[0].items}
        # What was written before is told of the time of any attempt, and what is outdated of any time before.
        since = {name: min(o.began for o in attempts) for name, attempts in self.attempts.items()}
        seen = [replace(o, began=since[o.append_id]) if o.was_written else o for o in operations if o.tells]
        seen = [replace(o, began=-math.inf) if o.stale else o for o in seen]
        self.reads, self.deletes, self.appends = ([o for o in seen if o.kind == kind] for kind in _KINDS)

    def wrong(self) -> list[str]:
        found = [*self.wrong_reads(), *self.wrong_outcomes(), *self.wrong_states()]
        return found or [*self.wrong_lines(lines := self.lines()), *self.wrong_times(lines)]

    def wrong_reads(self) -> Iterable[str]:
        for o in self.reads:
            state = self.empty.extended(o.events)
            if any(not self.sent.get(item, {None}) <= o.items for item in o.items):
                yield f"a read at {o.began:g} has events that nobody sent, or parts of an append"
            if len(o.items) < len(o.events):
                yield f"a read at {o.began:g} has events that are doubled"
            if (o.length, o.version) != (len(state), state.version):
                yield f"a read at {o.began:g} tells a version or a length that its events do not have"
            for length in range(len(state), 0, -1):  # where no event came late, it went through these
                if self.states.setdefault((part := state.until(length)).link(length), part) is not part:
                    break

    def wrong_outcomes(self) -> Iterable[str]:
        read = {item for o in self.reads for item in o.items}
        for name, attempts in self.attempts.items():
            told = [o for o in attempts if o.outcome == "ok"]
            if len({o.version for o in told}) > 1 or sum(not o.was_written for o in told) > 1:
                yield f"append {name} was acknowledged as written twice, at {[o.length for o in told]} events"
            if all(o.outcome == "refused" or o.was_written for o in attempts) and (told or read & attempts[0].items):
                yield f"append {name} was written, and all who sent it were told that nothing was"

    def wrong_states(self) -> Iterable[str]:
        """Make the states of all appends again, the shortest first: each must follow from another one."""
        for o in sorted((o for o in self.appends if o.version), key=lambda o: (o.length, o.outcome != "ok")):
            lost = [other for other in self.appends if other.outcome == "unknown" and other.began < o.ended]
            before, self.states[o.version] = states_of(o, self.states.values(), lost) or (self.empty, self.empty)
            if self.states[o.version].version != o.version:
                yield f"an append at {o.began:g} tells of {o.length} events, by a version that follows from no other"
            elif o.may_follow(before) != (o.outcome == "ok"):
                yield f"an append at {o.began:g} on {len(before)} events was {o.outcome}, against its precondition"

    def lines(self) -> list[_Line]:
        """The states that were told, as lines; what was there first comes first."""
        told: dict[bytes, list[Operation]] = defaultdict(list)
        for o in sorted((*self.reads, *(o for o in self.appends if o.version)), key=lambda o: o.ended):
            told[o.version].append(o)
        lines = [_Line([o.version], [o]) for o in told.pop(self.empty.version, ()) if not o.stale]
        lives: list[_Line] = []
        for version, seen in told.items():
            for life in reversed(lives):
                at = bisect(life.versions, len(self.states[version]), key=lambda version: len(self.states[version]))
                around = [*life.versions[:at][-1:], version, *life.versions[at:][:1]]
                if all(includes(self.states[longer], self.states[shorter]) for shorter, longer in pairwise(around)):
                    break
            else:
                lives.append(life := _Line([], []))
            insort(life.versions, version, key=lambda version: len(self.states[version]))
            life.seen += seen
        ordered: list[_Line] = []
        for line in sorted([*lines, *lives], key=lambda line: line.since() + line.until(line.versions)):
            at = len(ordered)  # right where the clock tells; else what is lost tells
            while at and self.lost(ordered[at - 1], line) and not self.lost(line, ordered[at - 1]):
                at -= 1
            ordered.insert(at, line)
        return ordered

    def lost(self, earlier: _Line, later: _Line) -> int:
        """States of a line that are gone in a later one, if no deletion explains it and nothing could be lost then."""
        newest = self.states[later.versions[-1]]
        gone = {v for v in earlier.versions if v != later.versions[-1] and not includes(newest, self.states[v])}
        shared = np.isin(self.states[earlier.versions[-1]].events["item_id"], newest.events["item_id"]).any()
        ends = [*self.may_lose, *((o.began, o.ended) for o in self.deletes if not shared)]
        left = earlier.until(gone)
        return 0 if left == -math.inf or any(a < later.since() and left < z for a, z in ends) else len(gone)

    def wrong_lines(self, lines: list[_Line]) -> Iterable[str]:
        """Between two lines lies a deletion, or a time when events may be lost; no line outlives a deletion."""
        lives = [line for line in lines if line.seen[0].length]
        for life, o in product(lives, self.deletes):
            if o.outcome == "ok" and life.since() < o.began and o.ended < life.until(life.versions):
                yield f"{life.seen[-1].length} events outlived the deletion at {o.began:g}"
        for earlier, later in [*pairwise(lines), *pairwise(lives)]:
            if gone := self.lost(earlier, later):
                yield f"{gone} states were lost by {later.since():g}, and nothing was deleted"

    def wrong_times(self, lines: list[_Line]) -> Iterable[str]:
        """What began after another had ended must not lie before it in the order of states."""
        marks = [(until, 2, (-1, 0.0)) for _, until in self.may_lose]
        for number, line in enumerate(lines):
            for o in line.seen:
                before = o.length - (o.kind == "append" and o.outcome == "ok") / 2
                marks += [(o.ended, 1, (number, float(o.length))), (o.began, 0, (number, before))]
        newest = (-1, 0.0)
        for time, mark, place in sorted(marks):
            if mark > 0:
                newest = max(newest, place) if mark == 1 else place
            elif place < newest and not any(since <= time <= until for since, until in self.may_lose):
                yield f"what began at {time:g} saw {place[1]:g} events, when {newest[1]:g} had been told of"
