"""What an imported model of recsys-examples scores beside what its trainer did; docs/importing.md has the format."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from mfalcon.attention import AttentionForm
from mfalcon.errors import DataError
from mfalcon.importing.parity import Parity, lines_of
from mfalcon.importing.recsys_examples import ImportedRecsys
from mfalcon.masked_attention import FullAttention
from mfalcon.models.base import Targets
from mfalcon.models.config_kinds import Frozen

Key = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Row = Annotated[int, Field(ge=0, lt=1 << 31)]


class RecsysRequest(Frozen):
    """A line: a request in the trainer's own terms, and the scores that the trainer gave."""

    items: tuple[Key, ...]
    """Of the events, oldest first: keys of the trainer's table."""
    actions: tuple[Row, ...]
    """Row of each event in the table of actions."""
    candidates: tuple[Key, ...] = Field(min_length=1)
    scaling_seqlen: int | None = Field(default=None, gt=0, lt=1 << 30)
    """What divided attention, if that was another number than the sidecar says."""
    scores: dict[str, tuple[float, ...]] = Field(min_length=1)
    """Of each task, a probability for each candidate: the sigmoid of the trainer's logit."""


def recsys_parity(found: ImportedRecsys, path: Path) -> Parity:
    """Score every request of a file as its trainer did, and as a server does. Raises DataError."""
    tasks = [task.name for task in found.model.config.tasks]
    own, served, num = list[np.ndarray](), list[np.ndarray](), 0
    for one in _requests(found, path, tasks):
        num += 1
        columns = [index for index, task in enumerate(tasks) if task in one.scores]
        expected = np.array([one.scores[tasks[index]] for index in columns]).T
        constant = found.model.config.stack[0].attention_norm
        for norm, gaps in ((float(one.scaling_seqlen or constant), own), (constant, served)):
            gaps.append(np.abs(_scores(found, one, norm)[:, columns] - expected).ravel())
    if not num:
        raise DataError(f"{path}: has no request")
    exact, pinned = np.concatenate(own), np.concatenate(served)
    return Parity(num, len(exact), float(exact.max()), float(exact.mean()), float(pinned.max()), float(pinned.mean()))


def _requests(found: ImportedRecsys, path: Path, tasks: list[str]) -> Iterator[RecsysRequest]:
    config = found.model.config
    num_actions = found.model.action.num_embeddings
    for number, one in lines_of(path, RecsysRequest):
        if len(one.items) != len(one.actions):
            raise DataError(f"{path}:{number}: {len(one.items)} items and {len(one.actions)} actions, must be as many")
        if len(one.items) > config.max_history:
            raise DataError(
                f"{path}:{number}: {len(one.items)} items, must be at most max_history {config.max_history}"
            )
        if strange := sorted(one.scores.keys() - set(tasks)):
            raise DataError(f"{path}:{number}: scores of {strange[0]!r}, the tasks are {tasks}")
        if bad := [task for task, scores in one.scores.items() if len(scores) != len(one.candidates)]:
            raise DataError(f"{path}:{number}: scores of {bad[0]!r} must be one for each of {len(one.candidates)}")
        if over := [row for row in one.actions if row >= num_actions]:
            raise DataError(f"{path}:{number}: action {over[0]}, must be below {num_actions}")
        yield one


def _scores(found: ImportedRecsys, one: RecsysRequest, norm: float) -> np.ndarray:
    """One dense forward over [history, candidates]: [num_candidates, num_tasks]."""
    model, keys = found.model, (np.array(one.items, dtype=np.int64), np.array(one.candidates, dtype=np.int64))
    rows, asked = (torch.from_numpy(found.items.rows(of)) for of in keys)
    with torch.inference_mode():
        prefix = model.tokens(rows, torch.tensor(one.actions, dtype=torch.int64))
        n, size = len(prefix), len(prefix) + len(asked)
        targets = Targets(asked, torch.empty(0, dtype=torch.int64))
        x = torch.cat([prefix, model.target_tokens(targets)])
        x = model.placed(x, torch.arange(size).clamp(max=n))
        mask = torch.ones(size, size, dtype=torch.bool).tril()
        mask[n:, n:] = torch.eye(size - n, dtype=torch.bool)
        nothing = torch.zeros(size, dtype=torch.int64)
        attend = FullAttention(mask, nothing, nothing, nothing)

        def normed(layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
            return attend(layer, q, k, v, replace(form, norm=norm))

        raw = model.predict(model.stack(x, normed)[n:], targets)
        scores: np.ndarray = model.scores(raw).double().numpy()
    return scores
