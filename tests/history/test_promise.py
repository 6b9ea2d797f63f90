"""What a log promises its writers, as a model that logs are held against, call by call: nothing that was acknowledged
is lost, nothing is doubled, and whoever asks is told the truth, whatever was lost on the way and however often he asks.
"""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from loadtest.faults.recording import placed
from loadtest.faults.redis_server import RedisServer
from mfalcon.errors import HistoryMismatch
from mfalcon.history.budget import LogBudget
from mfalcon.history.file_log import FileLog, FileLogOptions
from mfalcon.history.history import History, Retention, no_history
from mfalcon.history.local_log import LocalLog
from mfalcon.history.log import EventLog
from mfalcon.history.redis_log import RedisLog
from mfalcon.metrics.logs import LogMetrics
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, RedisSettings
from mfalcon.redis.keys import Keys
from mfalcon.types import EVENT_DTYPE, Append, Appended

RETENTION = Retention(max_events=10_000, slack=64)
KEYS = Keys("promise")
USER = "ann"
NUM_REPLICAS = 2
PATIENCE_S = 5.0
WAYS = st.sampled_from(["freely", "len", "version", "both", "wrong len", "wrong version"])


@dataclass
class World:
    """Replicas of one log, and how it is rolled back. save: what Redis holds of the user; restore: put that back.
    restart: end the one server that a log is of, and give the log as the next one finds it.
    """

    replicas: list[EventLog]
    save: Callable[[], object] | None = None
    restore: Callable[[object], None] | None = None
    restart: Callable[[], EventLog] | None = None
    close: Callable[[], object] = lambda: None


@dataclass
class Model:
    """The history as it must be. written: what the append of each id was told when it was written."""

    history: History = field(default_factory=lambda: no_history(USER))
    written: dict[str, Appended] = field(default_factory=dict)


@dataclass
class Sent:
    """An append that a writer may repeat."""

    append: Append


class Promise(RuleBasedStateMachine):
    """Writers take turns, so there is one right answer to everything."""

    appends = Bundle("appends")

    def __init__(self, make: Callable[[asyncio.Runner], World]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.world = make(self.runner)
        self.model = Model()
        self.saved: list[tuple[object, Model]] = []
        self.known = [no_history(USER)] * NUM_REPLICAS
        """What each replica knew of the log when it last heard of it."""
        self.untold = [0] * NUM_REPLICAS
        self.perhaps: list[set[object]] = [set() for _ in range(NUM_REPLICAS)]
        """Events that a replica may have heard of besides: it may have looked at the log before it found an id."""
        self.perhaps_untold = [0] * NUM_REPLICAS
        self.number = 0

    def teardown(self) -> None:
        self.runner.run(self.world.replicas[0].delete(USER, None))
        self.world.close()
        self.runner.close()

    @rule(target=appends, replica=st.integers(0, NUM_REPLICAS - 1), num=st.integers(1, 3), way=WAYS)
    def append(self, replica: int, num: int, way: str) -> Sent:
        """A new one. Its writer may have heard what became of it or not: he may ask again in any case."""
        sent = Sent(self.new_append(num, way))
        self.ask(replica, sent)
        return sent

    @rule(
        target=appends,
        replica=st.integers(0, NUM_REPLICAS - 1),
        num=st.integers(1, 3),
        late=st.sampled_from(["insert", "clamp"]),
        shift=st.integers(-5, 0),
    )
    def append_late(self, replica: int, num: int, late: str, shift: int) -> Sent:
        """Of a stream that is behind others: events go where they belong, or take the newest one's time."""
        sent = Sent(self.new_append(num, "freely", late, shift))
        self.ask(replica, sent)
        return sent

    @rule(target=appends, num=st.integers(1, 3), way=WAYS)
    def send_into_the_void(self, num: int, way: str) -> Sent:
        """An append that never arrives."""
        return Sent(self.new_append(num, way))

    @rule(sent=appends, replica=st.integers(0, NUM_REPLICAS - 1))
    def repeat(self, sent: Sent, replica: int) -> None:
        """Ask again, a replica that may know nothing of it."""
        self.ask(replica, sent)

    @rule(replica=st.integers(0, NUM_REPLICAS - 1), num=st.integers(1, 3), way=WAYS)
    def append_without_an_id(self, replica: int, num: int, way: str) -> None:
        """One that can be asked once."""
        append = self.new_append(num, way)
        self.ask(replica, Sent(Append(append.events, append.expected_len, append.expected_version)), remember=False)

    @rule(replica=st.integers(0, NUM_REPLICAS - 1))
    def read(self, replica: int) -> None:
        """Any replica tells the history as it is."""
        history = self.runner.run(self.world.replicas[replica].read(USER, PATIENCE_S)).history
        assert np.array_equal(history.events, self.model.history.events)
        assert (len(history), history.version) == (len(self.model.history), self.model.history.version)
        self.contact(replica)

    @rule(replica=st.integers(0, NUM_REPLICAS - 1))
    def delete(self, replica: int) -> None:
        """A new life begins: nothing of the old one is known any more, its appends' ids included."""
        self.runner.run(self.world.replicas[replica].delete(USER, None))
        self.model = Model()
        self.saved.clear()
        self.known = [no_history(USER)] * NUM_REPLICAS
        self.untold, self.perhaps_untold = [0] * NUM_REPLICAS, [0] * NUM_REPLICAS
        self.perhaps = [set() for _ in range(NUM_REPLICAS)]

    @precondition(lambda self: self.world.save is not None and len(self.model.history) > 0)
    @rule()
    def replicate(self) -> None:
        """What another Redis has of the log, should it take over."""
        assert self.world.save is not None
        self.saved.append((self.world.save(), Model(self.model.history, dict(self.model.written))))

    @precondition(lambda self: bool(self.saved))
    @rule()
    def fail_over(self) -> None:
        """To a Redis that lagged: the log, and what it knows of ids, is as it was."""
        assert self.world.restore is not None
        content, model = self.saved.pop()
        self.world.restore(content)
        self.model = Model(model.history, dict(model.written))

    @precondition(lambda self: self.world.restart is not None)
    @rule()
    def restart(self) -> None:
        """The log and all that it was told survive a server."""
        assert self.world.restart is not None
        self.world.replicas = [self.world.restart()] * NUM_REPLICAS

    @invariant()
    def nothing_is_doubled(self) -> None:
        """No event is there twice, whoever asked how often."""
        items = self.model.history.events["item_id"].tolist()
        assert len(items) == len(set(items))

    def new_append(self, num: int, way: str, late: str = "", shift: int = 0) -> Append:
        """Events that nobody sent before, on a condition that holds now or does not. shift: how much later they were
        than all are that nobody shifts.
        """
        self.number += 1
        events = np.zeros(num, dtype=EVENT_DTYPE)
        events["item_id"] = 1_000 * self.number + np.arange(num)
        events["time_ms"] = 1_700_000_000_000 + shift
        length, version = len(self.model.history), self.model.history.version
        expected_len = {"len": length, "both": length, "wrong len": length + 1}.get(way)
        expected_version = {"version": version, "both": version, "wrong version": bytes(16)}.get(way)
        return Append(events, expected_len, expected_version, append_id=f"append-{self.number}", late_events=late)

    def ask(self, replica: int, sent: Sent, *, remember: bool = True) -> None:
        """Append through a replica, and compare what it says with the model."""
        append, log = sent.append, self.world.replicas[replica]
        written = self.model.written.get(append.append_id) if append.append_id else None
        before = self.model.history
        fits = append.expected_len in (None, len(before)) and append.expected_version in (None, before.version)
        if written is None and not fits:
            with pytest.raises(HistoryMismatch) as refused:
                self.runner.run(log.append(USER, append, None))
            assert (refused.value.history_len, refused.value.version_hex) == (len(before), before.version.hex())
            assert not refused.value.may_be_done
            self.contact(replica)
            return
        told = self.runner.run(log.append(USER, append, None))
        if written is not None:
            assert (told.history_len, told.version, told.was_written) == (written.history_len, written.version, True)
            self.perhaps[replica] |= set(before.events.tolist())  # who only finds an id need not have looked at the log
            return
        after = placed(before, append.events, append.late_events)
        assert (told.history_len, told.version, told.was_written) == (len(after), after.version, False)
        is_late = len(before.events) > 0 and bool(append.events["time_ms"][0] < before.events["time_ms"][-1])
        moved = {"insert": told.inserted, "clamp": told.clamped}.get(append.late_events, ())
        assert len(moved) == (len(append.events) if is_late else 0) and not len(told.discarded)
        self.contact(replica)
        assert 0 <= told.lost_events - self.untold[replica] <= self.perhaps_untold[replica]
        self.untold[replica] = self.perhaps_untold[replica] = 0
        self.model.history = self.known[replica] = after
        if remember:
            self.model.written[append.append_id] = told

    def contact(self, replica: int) -> None:
        """A replica has heard what the log is: what it knew and is gone will be told to the next writer."""
        there = set(self.model.history.events.tolist())
        gone = set(self.known[replica].events.tolist()) - there
        self.untold[replica] += len(gone)
        self.perhaps_untold[replica] += len(self.perhaps[replica] - there - gone)
        self.perhaps[replica].clear()
        self.known[replica] = self.model.history


def a_local_log(runner: asyncio.Runner) -> World:
    return World([LocalLog(RETENTION)] * NUM_REPLICAS)


def logs_in(server: RedisServer, runner: asyncio.Runner) -> World:
    """Replicas on one Redis, whose keys of the user can be put back."""
    settings = RedisSettings(server.url, PATIENCE_S, PATIENCE_S)
    keys = [KEYS.log(no_history(USER).user), KEYS.appends(no_history(USER).user)]
    clients, logs = [], []

    async def make() -> None:
        for _ in range(NUM_REPLICAS):
            metrics = StateMetrics()
            clients.append(RedisClient(settings, metrics))
            logs.append(RedisLog(clients[-1], KEYS, RETENTION, metrics))

    async def close() -> None:
        for client in clients:
            await client.close()

    def save() -> object:
        return [server.command("DUMP", key) for key in keys]

    def restore(content: object) -> None:
        assert isinstance(content, list)
        for key, dump in zip(keys, content, strict=True):
            if dump is None:
                server.command("DEL", key)
            else:
                server.command("RESTORE", key, 0, dump, "REPLACE")

    server.flush()
    runner.run(make())
    return World(list(logs), save, restore, close=lambda: runner.run(close()))


def a_log_in_a_file(place: Path, runner: asyncio.Runner) -> World:
    """One server's, in a directory of its own, with one server after the other."""
    directory = Path(tempfile.mkdtemp(dir=place))
    options = FileLogOptions(directory, "memory")
    log: FileLog

    async def start() -> None:
        nonlocal log
        log = FileLog(options, LogBudget(), RETENTION, StateMetrics(), LogMetrics(), lambda _: None)
        log.start()

    def restart() -> EventLog:
        runner.run(log.close())
        runner.run(start())
        return log

    runner.run(start())
    return World([log] * NUM_REPLICAS, restart=restart, close=lambda: runner.run(log.close()))


SETTINGS = settings(stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


def keeps_it(
    make: Callable[[asyncio.Runner], World], examples: int = 25, phases: Sequence[Phase] = tuple(Phase)
) -> None:
    """Hold logs against the model."""

    class Held(Promise):
        def __init__(self) -> None:
            super().__init__(make)

    run_state_machine_as_test(Held, settings=settings(SETTINGS, max_examples=examples, phases=phases))


def test_the_log_in_memory_keeps_it() -> None:
    keeps_it(a_local_log)


def test_the_log_in_a_file_keeps_it_through_restarts(tmp_path: Path) -> None:
    keeps_it(lambda runner: a_log_in_a_file(tmp_path, runner))


def test_the_log_in_redis_keeps_it_through_failovers(redis_server: RedisServer) -> None:
    keeps_it(lambda runner: logs_in(redis_server, runner))


@pytest.mark.thorough
def test_the_log_in_redis_keeps_it_for_long(redis_server: RedisServer) -> None:
    keeps_it(lambda runner: logs_in(redis_server, runner), 500)


class Forgetful(LocalLog):
    """Does not know an append again."""

    async def append(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Without its id."""
        return await super().append(user_id, replace(append, append_id=""), deadline)


def test_a_log_that_does_not_keep_it_is_found() -> None:
    with pytest.raises((AssertionError, HistoryMismatch)):  # written twice, or refused where it was written
        keeps_it(lambda runner: World([Forgetful(RETENTION)] * NUM_REPLICAS), phases=[Phase.generate])
