"""The cold oracle: answers of a server held against a forward from nothing over the history that it had to see."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch

from mfalcon.algorithm import prefill, score
from mfalcon.backends.select import reference
from mfalcon.features.provider import Asked, FeatureProvider
from mfalcon.models.base import Targets, context_codes, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Events, Floats, Ids, RankRequest, no_events
from mfalcon.window import WindowRule

BOUND = 1e-5
"""Worst float32 score difference that still counts as equal."""
_MICROBATCH = 64


@dataclass(slots=True, eq=False)
class Life:
    """A user's acknowledged events from an empty history to the next delete: it only grows."""

    parts: list[Events] = field(default_factory=list)
    size: int = 0

    def add(self, events: Events) -> None:
        """Events that were acknowledged."""
        self.parts.append(events)
        self.size += len(events)

    def events(self) -> Events:
        """All of them."""
        return np.concatenate(self.parts) if self.parts else no_events()


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One ranked request: the life and the length that it had to see, and what it got. where: for the complaint.
    recent: the request's own events, behind those.
    """

    where: str
    life: Life
    length: int
    request_time_ms: int
    candidates: Ids
    task_scores: Floats
    recent: Events = field(default_factory=no_events)


def score_errors(checkpoint: Checkpoint, answers: Sequence[Answer], threads: int) -> dict[Answer, float]:
    """The worst difference of each answer from its cold forward.

    threads: answers checked at once; torch itself should have one thread.
    """
    by_life: dict[Life, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_life[answer.life].append(answer)
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(lambda same: _life_errors(checkpoint, same), by_life.values())
        return {answer: error for part in parts for answer, error in part.items()}


def _life_errors(checkpoint: Checkpoint, answers: Sequence[Answer]) -> dict[Answer, float]:
    """Answers of one life; those that saw the same events share one prefill."""
    model, items = checkpoint.model, checkpoint.items
    config, cpu = model.config, torch.device("cpu")
    served, history, errors = reference(model), answers[0].life.events(), {}
    by_events: dict[tuple[int, bytes], list[Answer]] = defaultdict(list)
    for answer in answers:
        by_events[answer.length, answer.recent.tobytes()].append(answer)
    with torch.inference_mode():
        for (length, _), same in by_events.items():
            seen = np.concatenate([history[:length], same[0].recent])
            start = WindowRule(config.max_history, config.window_chunk).start(len(seen))
            state = prefill(served, event_tokens(seen[start:], items, cpu))
            for answer in same:
                codes = torch.from_numpy(context_codes(config.context_features, {}, answer.request_time_ms))
                dense = _graph_features(checkpoint, answer, seen)
                targets = Targets(torch.from_numpy(items.keys(answer.candidates)), codes, dense)
                cold = score(served, state, targets, answer.request_time_ms, _MICROBATCH).float().numpy().T
                errors[answer] = _gap(cold, answer.task_scores)
    return errors


def _graph_features(checkpoint: Checkpoint, answer: Answer, seen: Events) -> torch.Tensor | None:
    """Of a model that reads a graph; nothing else is given behind the layers here."""
    model, items = checkpoint.model, checkpoint.items
    if model.graph is None:
        return None
    request = RankRequest("", answer.candidates, 0, answer.request_time_ms, no_events(), {})
    asked = Asked(request, items.rows(answer.candidates), seen, {}, model.graph.rows())
    features = FeatureProvider(model.config, items).features(asked)
    return None if features is None else torch.from_numpy(features)


def _gap(cold: Floats, got: Floats) -> float:
    if cold.shape != got.shape:
        return float("inf")
    gap = float(np.abs(cold - got).max())
    return gap if np.isfinite(gap) else float("inf")
