"""`mfalcon rank --stream`: a line for each part as it comes, the answer at the end, and errors behind the parts."""

import asyncio
import json

import numpy as np
import pytest

from mfalcon.cli.rank import rank
from mfalcon.cli.rank_parts import part_line
from mfalcon.errors import CallFailed, Superseded
from mfalcon.models.items import ItemTable
from mfalcon_client import Part
from tests.server.fake_engine import FakeEngine
from tests.server.harness import serving_engine

CANDIDATES = ",".join(map(str, [*range(1, 25), 2**40]))


@pytest.fixture
def engine() -> FakeEngine:
    """It tells ten candidates at a time."""
    engine = FakeEngine()
    engine.part_len = 10
    return engine


async def test_parts_are_printed_before_the_answer(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving_engine(engine) as served:
        target = served.addresses.grpc
        await asyncio.to_thread(lambda: rank("ann", CANDIDATES, target=target, json_output=True))
        (whole,) = map(json.loads, capsys.readouterr().out.splitlines())
        await asyncio.to_thread(lambda: rank("ann", CANDIDATES, target=target, stream=True, json_output=True))
        *parts, last = map(json.loads, capsys.readouterr().out.splitlines())
        assert last | {"timings": None} == whole | {"timings": None}
        assert [(part["first"], len(part["scores"])) for part in parts] == [(0, 10), (10, 10), (20, 5)]
        assert [position for part in parts for position in part["unknown"]] == [24]
        best = whole["top"][0]
        assert max(score for part in parts for score in part["scores"]) == best["score"]
        assert parts[0]["tasks"].keys() == best["tasks"].keys()

        await asyncio.to_thread(lambda: rank("ann", CANDIDATES, target=target, stream=True))
        lines = capsys.readouterr().out.splitlines()
        for line, begins in zip(lines, ("1 to 10", "11 to 20", "21 to 25"), strict=False):
            assert line.startswith(f"candidates {begins} of 25 after ")
        assert any("history" in line for line in lines[3:])


async def test_an_error_comes_behind_the_parts_that_are_right(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.late_fault = Superseded("the model was exchanged")
    async with serving_engine(engine) as served:
        target = served.addresses.grpc
        with pytest.raises(CallFailed, match=r"ABORTED: the model was exchanged"):
            await asyncio.to_thread(lambda: rank("ann", CANDIDATES, target=target, stream=True, json_output=True))
        assert [json.loads(line)["first"] for line in capsys.readouterr().out.splitlines()] == [0, 10]
        with pytest.raises(CallFailed, match=r"NOT_FOUND: .*nobody"):
            await asyncio.to_thread(lambda: rank("ann", CANDIDATES, target=target, stream=True, model="nobody"))
        assert capsys.readouterr().out == ""


def test_a_part_names_its_best_candidate() -> None:
    items = ItemTable(np.array([1, 2]), ("Film [/b]", "Film [rec]"), {})
    nobody = np.empty(0, dtype=np.int64)
    scores = np.array([0.25, 0.5], dtype=np.float32)
    part = Part(1, scores, scores[None], nobody, nobody, ("like",), "v")
    ids = np.array([9, 1, 2])
    names: list[int | str] = ["sku", 1, 2]
    assert part_line(part, 1.23, ids, names, items).endswith("2 to 3 of 3 after 1.2 ms; best: 2, 0.5000, Film [rec]")
    unknown = Part(0, scores[:1], scores[None, :1], np.array([0]), nobody, ("like",), "v")
    assert part_line(unknown, 1.23, ids, names, items).endswith("best: sku, 0.2500, (unknown item)")
