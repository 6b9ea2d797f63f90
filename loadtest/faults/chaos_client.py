"""One client of the chaos run: the single writer of its users, who knows what is acknowledged and asks any replica."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from loadtest.faults.oracle import Answer, Life
from loadtest.faults.replicas import CallLog, Replicas
from loadtest.faults.resolve import LogViolation, Unresolved, append_surely, delete_surely
from loadtest.load.trace import Append, Delete, Edit, Rank, Step, TraceOptions, edited, time_ms, trace
from mfalcon.errors import CallFailed
from mfalcon.types import EVENT_DTYPE, Events, Ids, no_events
from mfalcon_client import Client

_PAUSE_S = 0.05
"""Between two attempts at a write."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """What to send. rate: calls a second of all clients together. settle_s: to resolve what faults have left open.

    race_share: of the appends, which are sent twice at once. recent_share: of the Ranks, which carry events too.
    prefix: of the users' names.
    """

    seconds: float = 300.0
    num_users: int = 200
    num_clients: int = 16
    rate: float = 100.0
    deadline_s: float = 1.0
    settle_s: float = 60.0
    num_candidates: int = 20
    max_history: int = 512
    delete_share: float = 0.01
    edit_share: float = 0.01
    race_share: float = 0.2
    recent_share: float = 0.2
    prefix: str = "chaos"
    seed: int = 0


@dataclass(slots=True)
class User:
    """What its client knows. broken: after a violation nothing more can be said of this user."""

    name: str
    life: Life = field(default_factory=Life)
    time_s: float = 0.0
    seen: bool = False
    broken: bool = False


@dataclass(slots=True)
class Records:
    """What a client got. answers: one for each answered Rank, with the length that it should have seen.

    lengths: the length that each says it has seen. sources: by tier. stale: those that say they may be outdated.
    appends: by `Written`. mixes: what only several clients at once do, by kind. lost, unresolved: writes that went
    wrong, in words. calls: of the trace. last_calls: those that ask for every user in the end and delete them, as fast
    as they are answered.
    """

    calls: CallLog = field(default_factory=CallLog)
    last_calls: CallLog = field(default_factory=CallLog)
    answers: list[Answer] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    appends: Counter[str] = field(default_factory=Counter)
    mixes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    unresolved: list[str] = field(default_factory=list)


class ChaosClient:
    """The users whose number is `number` modulo the number of clients; a trace of their own. For one thread."""

    def __init__(
        self, number: int, options: ChaosOptions, item_ids: Ids, num_actions: int, targets: Sequence[str]
    ) -> None:
        self._number = number
        self._options = options
        self._item_ids = item_ids
        self._num_actions = num_actions
        self._targets = targets
        self._users = [
            User(f"{options.prefix}-{user}") for user in range(number, options.num_users, options.num_clients)
        ]
        self._rng = np.random.default_rng((options.seed, number))
        self.records = Records()

    def send(self, servers: Sequence[Client], stop: float) -> None:
        """Follow the trace until `stop` (time.monotonic()), at this client's part of the rate.

        A write of unknown outcome is resolved before anything else is sent, if need be after `stop`.
        """
        options = self._options
        replicas = Replicas(servers, self._rng, options.deadline_s, self.records.calls)
        for step in self._trace():
            pause_s = self._rng.exponential(options.num_clients / options.rate)
            if time.monotonic() + pause_s >= stop:
                return
            time.sleep(pause_s)
            user = self._users[step.user]
            if not user.broken:
                self._take(replicas, user, step, stop + options.settle_s)

    def ask_all(self, servers: Sequence[Client], give_up: float) -> None:
        """Rank each user of the trace on each replica, again and again until it is answered."""
        candidates = self._rng.choice(self._item_ids, self._options.num_candidates)
        for number, server in enumerate(servers):
            replica = Replicas([server], self._rng, self._options.deadline_s, self.records.last_calls)
            for user in self._users:
                keep_trying = self._patience(give_up)
                while user.seen and not user.broken:
                    if self._rank(replica, user, candidates, time_ms(user.time_s), self._targets[number]):
                        break
                    if not keep_trying():
                        self.records.unresolved.append(f"{user.name} on {self._targets[number]}: never answered again")
                        break

    def delete_all(self, servers: Sequence[Client], give_up: float) -> None:
        """Leave nothing of the users on the servers."""
        replicas = Replicas(servers, self._rng, self._options.deadline_s, self.records.last_calls)
        for user in self._users:
            try:
                if user.seen:
                    delete_surely(replicas, user.name, self._patience(give_up))
            except (LogViolation, Unresolved) as error:
                self.records.unresolved.append(str(error))

    def _trace(self) -> Iterator[Step]:
        options = self._options
        drawn = TraceOptions(
            num_users=len(self._users),
            num_requests=2**62,  # it ends with the time
            num_actions=self._num_actions,
            num_candidates=options.num_candidates,
            max_history=options.max_history,
            delete_share=options.delete_share,
            edit_share=options.edit_share,
            seed=options.seed * options.num_clients + self._number,
        )
        return trace(drawn, self._item_ids)

    def _take(self, replicas: Replicas, user: User, step: Step, give_up: float) -> None:
        user.seen, user.time_s = True, step.time_s
        try:
            match step:
                case Rank():
                    recent = self._recent(time_ms(step.time_s))
                    self._rank(replicas, user, step.candidates, time_ms(step.time_s), recent=recent)
                case Append():
                    self._append(replicas, user, step.events, give_up)
                case Delete():
                    self._delete(replicas, user, give_up)
                case Edit():
                    copy = edited(user.life.events(), step)
                    self._delete(replicas, user, give_up)
                    self._append(replicas, user, copy, give_up)
        except LogViolation as violation:
            user.broken = True
            self.records.lost.append(str(violation))
        except Unresolved as unresolved:
            user.broken = True
            self.records.unresolved.append(str(unresolved))

    def _rank(
        self,
        replicas: Replicas,
        user: User,
        candidates: Ids,
        now_ms: int,
        target: str | None = None,
        recent: Events | None = None,
        *,
        deleting: bool = False,
    ) -> bool:
        """True if it was answered with scores. deleting: the user is being deleted, so that no events are right too."""
        recent = no_events() if recent is None else recent
        try:
            result = replicas.rank(user.name, candidates, now_ms, recent)
        except CallFailed:
            return False  # its status is counted
        source = result.cache.source.name.lower()
        where = f"{user.name} on {target or self._targets[replicas.latest]} ({source})"
        records = self.records
        records.sources[source] += 1
        records.stale += result.stale
        records.lengths.append(result.history_len)
        records.mixes["ranks_with_recent_events"] += len(recent) > 0
        records.mixes["ranks_during_a_delete"] += deleting
        life = Life() if deleting and result.history_len == 0 else user.life
        records.answers.append(Answer(where, life, life.size, now_ms, candidates, result.task_scores, recent))
        return True

    def _append(self, replicas: Replicas, user: User, events: Events, give_up: float) -> None:
        races = bool(self._rng.random() < self._options.race_share)
        patience = self._patience(give_up)
        written = append_surely(replicas, user.name, events, user.life.size, patience, times=2 if races else 1)
        self.records.mixes["appends_that_raced"] += races
        self.records.appends[written.value] += 1
        user.life.add(events)

    def _delete(self, replicas: Replicas, user: User, give_up: float) -> None:
        candidates, now_ms = self._rng.choice(self._item_ids, self._options.num_candidates), time_ms(user.time_s)

        def rank() -> None:
            self._rank(replicas, user, candidates, now_ms, deleting=True)

        delete_surely(replicas, user.name, self._patience(give_up), rank)
        user.life = Life()

    def _recent(self, now_ms: int) -> Events | None:
        """A few events that only a request knows, or none."""
        if self._rng.random() >= self._options.recent_share:
            return None
        events = np.zeros(int(self._rng.integers(1, 6)), dtype=EVENT_DTYPE)
        events["item_id"] = self._rng.choice(self._item_ids, len(events))
        events["actions"] = 1 << self._rng.integers(0, self._num_actions, len(events))
        events["time_ms"] = now_ms
        return events

    def _patience(self, give_up: float) -> Callable[[], bool]:
        def keep_trying() -> bool:
            time.sleep(self._rng.uniform(0, 2 * _PAUSE_S))
            return time.monotonic() < give_up

        return keep_trying
