"""What every event log on one machine promises, in memory and in a file, against plain lists of events."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mfalcon.errors import HistoryMismatch, InvalidInput, Overloaded
from mfalcon.history.budget import LogBudget
from mfalcon.history.chain import user_hash
from mfalcon.history.file_upkeep import FileUpkeep, Look
from mfalcon.history.history import History, no_history
from mfalcon.history.idle import IdleHistories
from mfalcon.history.local_log import LocalLog
from mfalcon.history.packed import pack, unpack
from mfalcon.types import EVENT_DTYPE, Append, Events, no_events
from tests.history.logs import KINDS, RETENTION, AnyLog, opened
from tests.history.test_history import assert_is
from tests.small import random_events

T = TypeVar("T")
USERS = st.sampled_from(["ann", "bob", "ann ", "ünï"])


class LogMachine(RuleBasedStateMachine):
    """Appends, deletions, restarts and reads of a few users. A cache of no bytes has every read come from afar."""

    kind = "memory"
    cache_bytes = 1 << 20

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = TemporaryDirectory()
        self.stack, self.log = self.opened()
        self.model: dict[str, Events] = {}
        self.generations: list[bytes] = []
        self.snapshots: list[tuple[History, str, Events]] = []
        self.seed = 0

    def opened(self) -> tuple[AsyncExitStack, AnyLog]:
        async def open_it() -> tuple[AsyncExitStack, AnyLog]:
            stack = AsyncExitStack()
            path = Path(self.directory.name)
            return stack, (await stack.enter_async_context(opened(self.kind, path, None, self.cache_bytes))).log

        return self.run(open_it())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def events_for(self, user_id: str, count: int) -> Events:
        self.seed += 1
        known = self.model.get(user_id, no_events())
        return random_events(count, self.seed, int(known["time_ms"][-1]) if len(known) else 0)

    def history(self, user_id: str) -> History:
        return self.run(self.log.read(user_id, 5)).history

    @rule(
        user_id=USERS, count=st.sampled_from([1, 2, 15, 31, 32, 33, 100]), says=st.sampled_from(["", "len", "version"])
    )
    def append(self, user_id: str, count: int, says: str) -> None:
        events, known = self.events_for(user_id, count), self.model.get(user_id, no_events())
        length = len(known) if says else None
        version = self.history(user_id).version if says == "all" else None
        told = self.run(self.log.append(user_id, Append(events, length, version), None))
        self.model[user_id] = np.concatenate([known, events])
        assert told.history_len == len(self.model[user_id])
        assert told.version == self.history(user_id).version
        events["item_id"] = -1  # the caller's array is the caller's again

    @rule(user_id=USERS, counts=st.lists(st.integers(1, 40), min_size=2, max_size=5))
    def append_at_once(self, user_id: str, counts: list[int]) -> None:
        known = self.model.get(user_id, no_events())
        at = int(known["time_ms"][-1]) if len(known) else 0
        parts = [np.array([(number, 1, 0.5, at)] * count, dtype=EVENT_DTYPE) for number, count in enumerate(counts)]

        async def append_all() -> list[int]:
            told = await asyncio.gather(*(self.log.append(user_id, Append(part), None) for part in parts))
            return [each.history_len for each in told]

        lengths = self.run(append_all())
        order = sorted(range(len(parts)), key=lambda number: lengths[number])
        self.model[user_id] = np.concatenate([known, *(parts[number] for number in order)])
        assert sorted(lengths) == [len(known) + sum(counts[n] for n in order[: i + 1]) for i in range(len(order))]

    @rule(
        user_id=USERS,
        backs=st.lists(st.integers(-2, 100), min_size=1, max_size=8),
        late_events=st.sampled_from(["insert", "clamp"]),
    )
    def append_late(self, user_id: str, backs: list[int], late_events: str) -> None:
        """Events as old as those so many places before the newest; what is older than all that is kept is discarded."""
        known, base = self.model.get(user_id, no_events()), self.history(user_id).base
        times = known["time_ms"].tolist() or [10**12]
        late = random_events(len(backs), self.seed)
        late["time_ms"] = [times[max(0, len(times) - 1 - back)] if back >= 0 else times[-1] - back for back in backs]
        told = self.run(self.log.append(user_id, Append(late, late_events=late_events), None))
        newest = np.maximum.accumulate([max(times), *late["time_ms"].tolist()] if len(known) else late["time_ms"])
        if late_events == "clamp":
            late["time_ms"] = newest[-len(late) :]
            self.model[user_id] = np.concatenate([known, late])
        else:
            is_kept = late["time_ms"] >= (known["time_ms"][base] if base else 0)
            assert list(told.discarded) == np.flatnonzero(~is_kept).tolist()
            tail = np.concatenate([known[base:], late[is_kept]])
            tail = tail[np.argsort(tail["time_ms"], kind="stable")]
            self.model[user_id] = np.concatenate([known[:base], tail])
        assert told.history_len == len(self.model[user_id])
        assert told.version == self.history(user_id).version

    @rule(user_id=USERS, off_by=st.sampled_from([-1, 1, 100]))
    def append_to_another_length(self, user_id: str, off_by: int) -> None:
        size = len(self.model.get(user_id, no_events()))
        with pytest.raises(HistoryMismatch) as caught:
            self.run(self.log.append(user_id, Append(self.events_for(user_id, 3), size + off_by), None))
        assert caught.value.history_len == size

    @rule(user_id=USERS)
    def append_to_another_version(self, user_id: str) -> None:
        with pytest.raises(HistoryMismatch):
            self.run(self.log.append(user_id, Append(self.events_for(user_id, 1), None, b"?" * 16), None))

    @rule(user_id=USERS)
    def append_the_past(self, user_id: str) -> None:
        known = self.model.get(user_id, no_events())
        if len(known) and known["time_ms"][-1] > 0:
            with pytest.raises(InvalidInput, match=r"events\[0\]\.time_ms"):
                late = np.array([(1, 1, 1, known["time_ms"][-1] - 1)], dtype=EVENT_DTYPE)
                self.run(self.log.append(user_id, Append(late), None))

    @rule(user_id=USERS)
    def delete(self, user_id: str) -> None:
        was = self.history(user_id).generation
        ended = self.run(self.log.delete(user_id, None))
        assert ended == was
        assert (ended != b"") == (user_id in self.model)
        assert ended == b"" or ended not in self.generations
        self.generations.append(ended)
        self.model.pop(user_id, None)

    @rule(user_id=USERS)
    def delete_while_appending(self, user_id: str) -> None:
        """Each of the three is before or after the deletion, whole."""
        known = self.model.get(user_id, no_events())
        at = int(known["time_ms"][-1]) if len(known) else 0
        parts = [np.array([(number, 1, 0.5, at)], dtype=EVENT_DTYPE) for number in range(3)]

        async def both() -> None:
            appends = [asyncio.create_task(self.log.append(user_id, Append(part), None)) for part in parts]
            await asyncio.gather(self.log.delete(user_id, None), *appends)

        self.run(both())
        history = self.history(user_id)
        assert set(history.events["item_id"].tolist()) <= {0, 1, 2}
        if len(history):
            self.model[user_id] = history.events.copy()
        else:
            self.model.pop(user_id, None)

    @rule()
    def restart(self) -> None:
        if self.kind != "memory":
            self.run(self.stack.aclose())
            self.stack, self.log = self.opened()

    @rule(user_id=USERS)
    def snapshot(self, user_id: str) -> None:
        self.snapshots.append((self.history(user_id), user_id, self.model.get(user_id, no_events()).copy()))

    @invariant()
    def snapshots_stay(self) -> None:
        for history, user_id, events in self.snapshots[-6:]:
            assert_is(history, user_id, events)

    @invariant()
    def the_log_is_the_model(self) -> None:
        assert len(self.log) == len(self.model)
        for user_id, events in self.model.items():
            history = self.history(user_id)
            assert_is(history, user_id, events)
            assert history.base <= max(0, len(events) - RETENTION.max_events)
            assert len(history.events) < 70 + 32 + 32

    def teardown(self) -> None:
        async def all_of_them() -> dict[str, History]:
            histories = self.log.histories()
            return {} if histories is None else {history.user_id: history async for history in histories}

        found = self.run(all_of_them())
        assert found.keys() == self.model.keys()
        for user_id, events in self.model.items():
            assert_is(found[user_id], user_id, events)
        generations = [history.generation for history in found.values()]
        assert len(set(generations)) == len(generations)
        self.run(self.stack.aclose())
        self.runner.close()
        self.directory.cleanup()


def machine_of(kind: str, cache_bytes: int, examples: int) -> Any:
    machine: Any = type(f"Machine_{kind}_{cache_bytes}", (LogMachine,), {"kind": kind, "cache_bytes": cache_bytes})
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    return case


TestMemory = machine_of("memory", 1 << 20, 12)
TestPackedMemory = machine_of("memory", 0, 12)
TestFile = machine_of("file", 1 << 20, 8)
TestFileWithoutCopies = machine_of("file", 0, 8)


@given(st.binary(max_size=24 * 70), st.integers(0, 3))
def test_a_packed_history_comes_back_to_the_bit(raw: bytes, blocks: int) -> None:
    events = np.frombuffer(raw[: len(raw) // 24 * 24], dtype=EVENT_DTYPE)
    history = no_history("ann", b"8 bytes.").extended(events)
    history = history.trimmed(min(blocks, len(events) // 32) * 32)
    again = unpack("ann", pack(history))
    assert again.events.tobytes() == history.events.tobytes()
    assert (again.generation, again.base, again.links, again.version) == (
        history.generation,
        history.base,
        history.links,
        history.version,
    )


def test_usual_events_pack_to_half() -> None:
    events = np.zeros(20, dtype=EVENT_DTYPE)
    rng = np.random.default_rng(3)
    events["item_id"], events["value"] = rng.integers(0, 10**6, 20), rng.integers(1, 6, 20)
    events["time_ms"] = 1_700_000_000_000 + np.sort(rng.integers(0, 200 * 86_400_000, 20))
    assert len(pack(no_history("ann", b"8 bytes.").extended(events))) <= 480 * 0.6


def test_idle_histories_are_the_oldest_first() -> None:
    idle, rng = IdleHistories(), np.random.default_rng(4)
    used: dict[str, float] = {}
    for now in range(3_000):
        user_id = f"user-{rng.integers(0, 800)}"
        if rng.random() < 0.7:
            idle.put(no_history(user_id, b"8 bytes."), float(now))
            used.pop(user_id, None)
            used[user_id] = float(now)
        else:
            assert (idle.take(user_id) is not None) == (user_id in used)
            used.pop(user_id, None)
        assert len(idle) == len(used)
        assert idle.oldest() == next(iter(used.items()), None)
    for user_id in list(used):
        idle.drop(user_id)
    assert (len(idle), idle.num_bytes, idle.oldest()) == (0, 0, None)


@pytest.mark.parametrize("kind", KINDS)
async def test_new_users_are_refused_before_known_ones_lose_anything(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, LogBudget(max_users=3)) as one:
        for number in range(3):
            await one.log.append(f"user-{number}", Append(random_events(2, number)), None)
        with pytest.raises(Overloaded, match=r"log_max_users: the event log holds 3 users, must be below 3"):
            await one.log.append("one more", Append(random_events(1)), None)
        for number in range(3):
            told = await one.log.append(f"user-{number}", Append(random_events(2, 9, 10**13)), None)
            assert told.history_len == 4
        await one.log.delete("user-1", None)
        await one.log.append("one more", Append(random_events(1)), None)
        assert len(one.log) == 3
        assert one.evicted == []
        assert one.sample("refused_total", bound="users") == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_who_was_not_asked_for_longest_goes_first(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path, LogBudget(max_users=3, when_full="evict")) as one:
        for number in range(3):
            await one.log.append(f"user-{number}", Append(random_events(2, number)), None)
            await asyncio.sleep(0 if kind == "memory" else 1.1)  # the file counts seconds
        await one.log.append("user-0", Append(random_events(2, 9, 10**13)), None)
        if kind == "memory":
            await one.log.read("user-1", 5)
        await one.log.append("one more", Append(random_events(1)), None)
        gone = "user-2" if kind == "memory" else "user-1"
        await until(lambda: len(one.log) == 3)
        (deletion,) = one.evicted
        assert deletion.user == user_hash(gone)
        assert len((await one.log.read(gone, 5)).history) == 0
        assert len((await one.log.read("user-0", 5)).history) == 4
        told = await one.log.append(gone, Append(random_events(1)), None)
        assert told.history_len == 1
        assert (await one.log.read(gone, 5)).history.generation != deletion.generation


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_users_nobody_asks_for_go_after_a_while(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 1_000_000_000
    for module in ("file_log", "file_keeper"):
        monkeypatch.setattr(f"mfalcon.history.{module}.seconds_now", lambda: seconds)
    async with opened(kind, tmp_path, LogBudget(max_idle_s=100.0), clock=lambda: seconds) as one:
        await one.log.append("ann", Append(random_events(2)), None)
        seconds += 90
        for number in range(2):
            await one.log.append("bob", Append(random_events(1, 1, 10**12 + number)), None)
        assert one.evicted == []
        seconds += 20
        await until(lambda: one.evicted)
        assert [deletion.user for deletion in one.evicted] == [user_hash("ann")]
        assert len((await one.log.read("ann", 5)).history) == 0
        assert len((await one.log.read("bob", 5)).history) == 2
        assert one.sample("evicted_total", reason="idle") == 1


async def test_memory_keeps_its_bytes(tmp_path: Path) -> None:
    """New users are refused at fifteen sixteenths; the rest is for those who are known, and then the oldest goes."""
    budget = LogBudget(max_bytes=64 << 10)
    async with opened("memory", tmp_path, budget, cache_bytes=4 << 10) as one:
        number = 0
        with pytest.raises(Overloaded, match=r"log_budget_mb: .* a new user is refused, nothing was written"):
            for number in range(1_000):
                await one.log.append(f"user-{number}", Append(random_events(5, number)), None)
        assert 100 < number < 250
        assert one.evicted == []
        assert isinstance(one.log, LocalLog)
        for known in range(number - 1, number - 31, -1):
            told = await one.log.append(f"user-{known}", Append(random_events(60, known, 10**13)), None)
            assert told.history_len == 65
            assert one.log.num_bytes <= budget.max_bytes
        assert {deletion.user for deletion in one.evicted} >= {user_hash("user-0"), user_hash("user-1")}
        assert len((await one.log.read(f"user-{number - 30}", 5)).history) == 65
        assert len((await one.log.read("user-0", 5)).history) == 0


async def test_a_file_keeps_its_bytes(tmp_path: Path) -> None:
    """As memory does, as soon as the file has been looked at."""
    async with opened("file", tmp_path, LogBudget(max_bytes=1 << 20)) as one:
        number = 0
        with pytest.raises(Overloaded, match=r"log_budget_mb: .* a new user is refused, nothing was written"):
            for number in range(10_000):
                await one.log.append(f"user-{number}", Append(random_events(50, number)), None)
                await asyncio.sleep(0.002)  # it is looked at twice a second
        assert 200 < number < 2_000
        assert one.evicted == []
        told = await one.log.append("user-0", Append(random_events(5, number, 10**13)), None)
        assert told.history_len == 55


async def test_a_full_file_deletes_as_many_users_as_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users who would fill it almost three times over, one a second: it stays near its bound, and the oldest go."""
    seconds, looks, look = 1_000_000_000, 0, FileUpkeep.look

    def counted(upkeep: FileUpkeep, *, move: bool, sync: bool, used_before: int, most: int) -> Look:
        nonlocal looks
        found = look(upkeep, move=move, sync=sync, used_before=used_before, most=most)
        looks += 1
        return found

    monkeypatch.setattr(FileUpkeep, "look", counted)
    monkeypatch.setattr("mfalcon.history.file_keeper.PERIOD_S", 0.005)
    for module in ("file_log", "file_keeper"):
        monkeypatch.setattr(f"mfalcon.history.{module}.seconds_now", lambda: seconds)
    budget = LogBudget(max_bytes=1 << 20, when_full="evict")
    async with opened("file", tmp_path, budget) as one:
        for number in range(1_000):
            seconds += 1
            await one.log.append(f"user-{number}", Append(random_events(100, number)), None)
            if number % 50 == 0:  # when one more has begun, all that the first one found has been done
                until_looks = looks + 2
                await until(lambda until_looks=until_looks: looks >= until_looks)
        assert one.sample("bytes") < 1.5 * budget.max_bytes
        await until(lambda: len(one.log) + len(one.evicted) == 1_000)  # those on their way are told a moment later
        evicted = {deletion.user for deletion in one.evicted}
        assert evicted == {user_hash(f"user-{number}") for number in range(len(evicted))}
        assert len((await one.log.read("user-999", 5)).history) == 100


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_append_makes_no_user(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as one:
        with pytest.raises(HistoryMismatch):
            await one.log.append("ann", Append(random_events(1), 3), None)
        assert len(one.log) == 0


async def until(holds: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("in_use_bytes", [1 << 40, 0])
@pytest.mark.parametrize("count", [2, 20, 200])
async def test_a_log_in_memory_counts_what_it_takes(count: int, in_use_bytes: int) -> None:
    """As the allocator counts it: a bound that is kept on too small numbers is none."""
    log, events = LocalLog(RETENTION, in_use_bytes=in_use_bytes), random_events(count)
    num_users = 6_000 if count < 200 else 1_000  # the tables of few users are mostly empty
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(num_users):
            await log.append(f"user-{number}", Append(events.copy()), None)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.9 < taken / log.num_bytes < 1.1
