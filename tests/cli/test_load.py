"""`mfalcon load` names the user that it stopped at, goes on from there without doubling an event, and says actions in
the words of the model.
"""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from mfalcon.cli.calling import calling
from mfalcon.cli.load import append_histories
from mfalcon.cli.load import load as load_command
from mfalcon.errors import CallFailed, DataError, StorageUnavailable
from mfalcon.train.synthetic import synthetic
from mfalcon.types import Append, Appended
from tests.server.fake_engine import FakeEngine
from tests.server.harness import serving_engine

DATASET = synthetic(7, 30, 21, seed=3)
EVERY = np.ones(len(DATASET.events), dtype=np.bool_)
CHUNK = 8
"""Less than a history, so that one can be half loaded."""


class Stopping(FakeEngine):
    """Its log cannot be reached after so many appends, or loses the answer to the next one."""

    def __init__(self, appends: int, *, answer_lost: bool) -> None:
        super().__init__()
        self.left: float = appends
        self.answer_lost = answer_lost

    async def append_events(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        if self.left == 0 and not self.answer_lost:
            raise StorageUnavailable("the log is away")
        done = await super().append_events(user_id, append, deadline)
        self.left -= 1
        if self.left < 0:
            raise StorageUnavailable("the log is away", may_be_done=True)
        return done


def load(target: str, chosen: np.ndarray = EVERY) -> int:
    with calling(target) as client:
        return append_histories(client, DATASET, chosen, CHUNK)


def loaded_once(engine: FakeEngine) -> bool:
    expected = {DATASET.user_ids[user]: DATASET.events[DATASET.of_user(user)] for user in np.unique(DATASET.user)}
    return engine.histories.keys() == expected.keys() and all(
        np.array_equal(engine.histories[user_id], events) for user_id, events in expected.items()
    )


@pytest.mark.parametrize("answer_lost", [False, True])
@pytest.mark.parametrize("appends", [0, 1, 2, 5])
async def test_a_load_that_stopped_goes_on(appends: int, answer_lost: bool) -> None:
    engine = Stopping(appends, answer_lost=answer_lost)
    async with serving_engine(engine) as served:
        target = served.addresses.grpc
        with pytest.raises(CallFailed, match=r"^UNAVAILABLE: user '.+': the log is away") as failure:
            await asyncio.to_thread(load, target)
        there = sum(len(events) for events in engine.histories.values())
        assert failure.value.code == "UNAVAILABLE"
        assert there < len(DATASET.events)
        engine.left = float("inf")
        assert await asyncio.to_thread(load, target) == len(DATASET.events) - there
        assert loaded_once(engine)
        assert await asyncio.to_thread(load, target) == 0
        assert loaded_once(engine)


async def test_a_user_with_more_events_is_named_and_left_alone() -> None:
    engine = FakeEngine()
    user = int(DATASET.user[-1])
    last = DATASET.of_user(user)[-1]
    chosen = EVERY.copy()
    chosen[last] = False
    async with serving_engine(engine) as served:
        await asyncio.to_thread(load, served.addresses.grpc)
        with pytest.raises(CallFailed, match=f"user '{DATASET.user_ids[user]}': the server has .* more than"):
            await asyncio.to_thread(load, served.addresses.grpc, chosen)
    assert loaded_once(engine)


@pytest.mark.parametrize(("action", "bit"), [("rating_2", 1), ("rating_5", 4)])
async def test_actions_go_by_the_names_of_the_model(action: str, bit: int, tmp_path: Path) -> None:
    pytest.importorskip("polars")
    path = tmp_path / "today.csv"
    lines = "user_id,item_id,timestamp,what,stars\nann,1,1700000000,rating_3,3\nann,2,1700000001,{},5\n"
    path.write_text(lines.format(action))
    engine = FakeEngine()
    async with serving_engine(engine) as served:
        target = served.addresses.grpc
        await asyncio.to_thread(load_command, None, str(path), "action=what,value=stars", target)
    assert engine.histories["ann"]["actions"].tolist() == [1 << 2, 1 << bit]


async def test_an_action_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    path = tmp_path / "today.csv"
    path.write_text("user_id,item_id,timestamp,what\nann,1,1700000000,rating_3\nann,2,1700000001,share\n")
    engine = FakeEngine()
    async with serving_engine(engine) as served:
        with pytest.raises(DataError, match="'share'"):
            await asyncio.to_thread(load_command, None, str(path), "action=what", served.addresses.grpc)
    assert not engine.histories


async def test_events_of_one_action_are_loaded(tmp_path: Path) -> None:
    """Nothing can be learned of them, and nothing is to be."""
    pytest.importorskip("polars")
    path = tmp_path / "today.csv"
    path.write_text("user_id,item_id,timestamp,what\nann,1,1700000000,rating_3\nann,2,1700000001,rating_3\n")
    engine = FakeEngine()
    async with serving_engine(engine) as served:
        await asyncio.to_thread(load_command, None, str(path), "action=what", served.addresses.grpc)
    assert engine.histories["ann"]["actions"].tolist() == [1 << 2, 1 << 2]
