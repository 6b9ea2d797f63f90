"""Replicas on one Redis under faults: many clients follow traces, and every answer is held against a cold oracle.

Every user is owned by one client thread, and every call goes to a replica drawn by chance: a replica that served a
state or a history which another one has outdated would be seen. A client knows which events are acknowledged, because
it resolves each write of unknown outcome before it goes on (`loadtest/faults/resolve.py`); so there is one right answer
to each Rank. The oracle computes after the run: the replicas have the cores to themselves, and no answer is late for
it.

What only several clients at once do is here too, each so that there is still a right answer: two appends race for one
`expected_len`, and one must win; a Rank goes out while its user is being deleted, and sees all of the events or none.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from loadtest.faults.chaos_client import ChaosClient, ChaosOptions
from loadtest.faults.chaos_report import ChaosReport, report
from loadtest.faults.oracle import score_errors
from loadtest.faults.replicas import clients
from mfalcon.models.checkpoint import Checkpoint

Inject = Callable[[threading.Event], Counter[str]]
"""Injects faults until the event is set, lifts them all and counts them by kind (`loadtest/faults/inject.py`)."""

_UNANSWERED_S = 10.0
"""A call that has not ended this long after the last time to try is unanswered."""
_TICK_S = 0.01


class Chaos:
    """One run against replicas that serve `checkpoint` in float32 and have never seen users of the options' prefix."""

    def __init__(self, checkpoint: Checkpoint, targets: Sequence[str], options: ChaosOptions) -> None:
        self._checkpoint = checkpoint
        self._targets = targets
        self._options = options
        num_actions = len(checkpoint.model.config.actions)
        self._clients = [
            ChaosClient(number, options, checkpoint.items.item_id, num_actions, targets)
            for number in range(options.num_clients)
        ]
        self._faults: Counter[str] = Counter()
        self._num_final = 0
        self._seconds = 0.0
        self._stall_s = 0.0

    def run(self, inject: Inject | None = None) -> None:
        """Send, with faults if there are any; when they are lifted, ask every replica for every user, then delete
        them all.
        """
        options, over, lift = self._options, threading.Event(), threading.Event()
        began = time.monotonic()
        stop = began + options.seconds
        metronome = _Work(partial(self._keep_time, over))
        with clients(self._targets) as servers:
            faults = _Work(lambda: self._faults.update(inject(lift) if inject else ()))
            senders = [_Work(partial(client.send, servers, stop)) for client in self._clients]
            faults.join(stop)  # where a fault cannot be lifted, this ends the run at once
            time.sleep(max(0.0, stop - time.monotonic()))
            lift.set()
            faults.join(stop + options.settle_s)
            _join_all(senders, stop + options.settle_s + _UNANSWERED_S)
            num_before = self._num_answers()
            settled = time.monotonic() + options.settle_s
            askers = [_Work(partial(client.ask_all, servers, settled)) for client in self._clients]
            _join_all(askers, settled + _UNANSWERED_S)
            self._num_final = self._num_answers() - num_before
            deleted = time.monotonic() + options.settle_s
            deleters = [_Work(partial(client.delete_all, servers, deleted)) for client in self._clients]
            _join_all(deleters, deleted + _UNANSWERED_S)
            over.set()
            metronome.join(time.monotonic() + _UNANSWERED_S)
            self._seconds = time.monotonic() - began

    def report(self, exited: Sequence[str], threads: int) -> ChaosReport:
        """Compare every answer with the oracle. exited: servers that ended by themselves, in words."""
        records = [client.records for client in self._clients]
        answers = [answer for record in records for answer in record.answers]
        return report(
            records,
            score_errors(self._checkpoint, answers, threads),
            seconds=self._seconds,
            deadline_s=self._options.deadline_s,
            stall_s=self._stall_s,
            num_final=self._num_final,
            faults=self._faults,
            exited=exited,
        )

    def _num_answers(self) -> int:
        return sum(len(client.records.answers) for client in self._clients)

    def _keep_time(self, over: threading.Event) -> None:
        """Measure how long this machine holds up a thread that has nothing to do."""
        while not over.is_set():
            began = time.monotonic()
            time.sleep(_TICK_S)
            self._stall_s = max(self._stall_s, time.monotonic() - began - _TICK_S)


class _Work:
    """A thread whose failure is raised by `join`; a daemon, so that a call which never ends holds up nothing."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def join(self, give_up: float) -> None:
        """Wait until `give_up` (time.monotonic()); a thread that has not ended by then is left alone."""
        self._thread.join(max(0.0, give_up - time.monotonic()))
        if self._failure is not None:
            raise self._failure

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (the thread's edge: `join` raises it)
            self._failure = error


def _join_all(works: Sequence[_Work], give_up: float) -> None:
    for work in works:
        work.join(give_up)
