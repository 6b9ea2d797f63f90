"""The script of docs/importing.md that writes requests and scores from a trainer: run as it stands, on the trainer's
interface; what it writes is what the golden requests are.
"""

import re
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

from torch import Tensor

from mfalcon.importing.parity import read_requests
from tests.importing.test_import import parity_lines
from tests.importing.writer import golden

PAGE = Path(__file__).parents[2] / "docs" / "importing.md"


def script() -> str:
    """The block of the page that defines `write`."""
    [block] = [
        block for block in re.findall(r"^((?: {4}.*\n|\n)+)", PAGE.read_text(), re.MULTILINE) if "def write(" in block
    ]
    return re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


class Jagged:
    """What the script asks of a jagged tensor: the values of a feature."""

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        self._features = features

    def __getitem__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(values=lambda: self._features[name])


class Trainer:
    """What the script asks of the trainer's model: its configuration, and predictions [num_tasks, num_candidates]."""

    def __init__(self) -> None:
        self._hstu_configs = SimpleNamespace(
            contextual_feature_to_max_length={"user_id": 1},
            merge_uih_candidate_feature_mapping=[("movie_id", "item_movie_id")],
            uih_post_id_feature_name="movie_id",
            uih_weight_feature_name="item_weights",
            uih_action_time_feature_name="action_timestamp",
            candidates_querytime_feature_name="item_query_time",
            multitask_configs=[SimpleNamespace(task_name="rating")],
        )

    def __call__(self, events: Jagged, candidates: Jagged) -> tuple[None, None, None, Tensor]:
        return None, None, None, candidates["prediction"].values().unsqueeze(0)


def samples() -> Iterator[tuple[Jagged, Jagged]]:
    for number in range(3):
        of = {name.split(".")[1]: t for name, t in golden().items() if name.startswith(f"request{number}.")}
        of["user_id"] = of["user_id"][:1]
        yield Jagged(of), Jagged(of)


def test_the_page_s_script_writes_what_the_command_reads(tmp_path: Path) -> None:
    code = script()
    assert len(code.strip().splitlines()) <= 40
    (tmp_path / "script.py").write_text(code)
    runpy.run_path(str(tmp_path / "script.py"))["write"](Trainer(), samples(), tmp_path / "asked")
    found = [one.model_dump(mode="json") for one in read_requests(tmp_path / "asked")]
    assert found == parity_lines()
