"""What `mfalcon rank` prints: titles as they are, unknown items marked, everything in the JSON."""

import dataclasses
import json

import numpy as np
import orjson
from rich.console import Console

from mfalcon.cli.rank import another_checkpoint, as_json, top_table
from mfalcon.models.items import ItemTable
from mfalcon_client import CacheInfo, CacheSource, MemberResult, Ranking, Timings

ITEMS = ItemTable(np.array([1, 2]), ("Film [/b]", "Film [rec]"), {})
IDS = np.array([1, 2, 9])
RESULT = Ranking(
    scores=np.array([0.1, 0.3, 0.2], dtype=np.float32),
    tasks=("like", "rating"),
    task_scores=np.array([[0.1, 0.3, 0.2], [1, 3, 2]], dtype=np.float32),
    top=np.array([1, 2, 0], dtype=np.int64),
    model_version="v",
    cache=CacheInfo(CacheSource.HOST, 5, 1),
    timings=Timings(1, 2, 3, 4, 10),
    history_len=6,
    unknown=np.array([2], dtype=np.int64),
    failed=np.empty(0, dtype=np.int64),
    stale=False,
    num_scored=3,
)


def test_titles_are_text_and_unknown_items_are_marked() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(top_table(RESULT, IDS, ITEMS))
    rows = captured.get().splitlines()
    assert any("Film [rec]" in row for row in rows)
    assert any("Film [/b]" in row for row in rows)
    assert any("(unknown item)" in row and " 9 " in row for row in rows)


def test_titles_of_another_checkpoint_are_told() -> None:
    served = "5f0c" * 3
    answer = dataclasses.replace(RESULT, model_version=served)
    assert another_checkpoint(answer, "5f0c" * 16) == ""
    assert served in another_checkpoint(answer, "ab" * 32) and "abababababab" in another_checkpoint(answer, "ab" * 32)
    none = np.empty(0, dtype=np.int64)
    member = MemberResult("m", "", 1.0, "ab" * 6, True, answer.cache, answer.timings, none, none, "", 1)
    assert another_checkpoint(dataclasses.replace(answer, members=(member,)), "ab" * 32) == ""


def test_json_holds_all_of_the_answer() -> None:
    content = json.loads(orjson.dumps(as_json(RESULT, IDS, ITEMS)))
    assert [row["item_id"] for row in content["top"]] == [2, 9, 1]
    assert [row["unknown"] for row in content["top"]] == [False, True, False]
    assert content["top"][0]["tasks"].keys() == {"like", "rating"}
    assert content["cache"] == {"source": "HOST", "reused_tokens": 5, "encoded_tokens": 1}
    assert content["history_len"] == 6
    assert content["num_scored"] == 3
    assert content["timings"]["total_us"] == 10
    assert content["rerank_skipped"] == ""
