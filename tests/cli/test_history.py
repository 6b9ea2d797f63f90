"""`mfalcon history` shows one history, however many pages it took and whoever writes meanwhile."""

import asyncio

import numpy as np
import orjson
import pytest

from mfalcon.cli.calling import calling
from mfalcon.cli.history import history, read
from mfalcon.errors import CallFailed
from mfalcon.history.history import no_history
from mfalcon.types import EVENT_DTYPE, Append, HistoryPage, HistoryRequest
from tests.server.fake_engine import FakeEngine
from tests.server.harness import serving_engine

EVENTS = np.zeros(2_500, dtype=EVENT_DTYPE)
EVENTS["item_id"], EVENTS["actions"], EVENTS["time_ms"] = np.arange(2_500), 17, 893_286_638_000 + np.arange(2_500)


class Changing(FakeEngine):
    """Somebody appends an event before each of the first so many pages after the first."""

    def __init__(self, changes: int) -> None:
        super().__init__()
        self.changes = changes

    async def get_history(self, request: HistoryRequest, deadline: float | None) -> HistoryPage:
        if request.first < 2**63 and request.first > 0 and self.changes:
            self.changes -= 1
            await self.append_events("ann", Append(EVENTS[-1:]), None)
        return await super().get_history(request, deadline)


def shown(target: str, capsys: pytest.CaptureFixture[str], user: str = "ann", **options: object) -> str:
    history(user, target=target, json_output=False, **options)  # type: ignore[arg-type]
    return capsys.readouterr().out


async def test_events_are_shown_in_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfalcon.cli.history._console.width", 200)
    engine = FakeEngine()
    engine.histories["ann"] = EVENTS
    async with serving_engine(engine) as served:
        target = served.addresses.grpc
        text = await asyncio.to_thread(shown, target, capsys, last=3)
        assert "1998-04-22 23:10:40.499" in text and "rating_1, rating_5" in text
        assert [f" {number} " in text for number in (2_496, 2_497, 2_499)] == [False, True, True]
        assert f"ann: 2500 events; version {no_history('ann').extended(EVENTS).version.hex()}" in text
        assert "HOST" in text and "8192.00" in text
        empty = await asyncio.to_thread(shown, target, capsys, "nobody", states=False)
        assert empty.startswith("nobody: 0 events; version ") and empty.count("\n") == 1


async def test_json_holds_every_event(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    engine = FakeEngine()
    engine.histories["ann"] = EVENTS
    async with serving_engine(engine) as served:
        await asyncio.to_thread(history, "ann", first=0, target=served.addresses.grpc, json_output=True)
    told = orjson.loads(capfdbinary.readouterr().out)
    assert [event["item_id"] for event in told["events"]] == list(range(2_500))
    assert told["events"][7]["position"] == 7 and told["events"][7]["actions"] == ["rating_1", "rating_5"]
    assert told["states"][0]["tier"] == "HOST" and told["history_len"] == 2_500


@pytest.mark.parametrize("changes", [1, 4])
async def test_a_history_that_changes_meanwhile_is_read_again(changes: int) -> None:
    engine = Changing(changes)
    engine.histories["ann"] = EVENTS
    async with serving_engine(engine) as served:

        def whole() -> HistoryPage:
            with calling(served.addresses.grpc) as client:
                return read(client, "ann", 0, 20)  # type: ignore[return-value]

        page = await asyncio.to_thread(whole)
    assert len(page.events) == page.history_len == 2_500 + changes
    assert page.version == no_history("ann").extended(page.events).version


async def test_one_that_never_rests_is_an_error() -> None:
    engine = Changing(10**6)
    engine.histories["ann"] = EVENTS
    async with serving_engine(engine) as served:
        with pytest.raises(CallFailed, match="FAILED_PRECONDITION: expected_version"):
            await asyncio.to_thread(history, "ann", first=0, target=served.addresses.grpc)
