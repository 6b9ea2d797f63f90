"""Parity with Meta's whole DLRM-v3 (golden/README.md): its weights, requests and predictions."""

import tomllib

import torch
from torch import Tensor

from mfalcon.backends.events import serve_events
from mfalcon.importing.dlrm_v3 import Imported, imported
from mfalcon.importing.sidecar import Sidecar
from mfalcon.models.base import EventTokens, Targets
from mfalcon.models.dlrm_v3 import DlrmReader, DlrmV3, Lengths, RequestKeys
from tests.importing.writer import SIDECAR, golden, golden_weights

BOUND = 1e-5  # float32 on both sides
MATES_BOUND = 1e-12


def model() -> Imported:
    return imported(golden_weights(), Sidecar.model_validate(tomllib.loads(SIDECAR)))


def request(number: int) -> tuple[EventTokens, Targets, int, Tensor]:
    """Events, candidates, time and predictions."""
    of = {name.split(".")[1]: t for name, t in golden().items() if name.startswith(f"request{number}.")}
    events = EventTokens(
        of["movie_id"] + 1, of["item_weights"], torch.zeros(len(of["movie_id"])), of["action_timestamp"] * 1000
    )
    return events, Targets(of["item_movie_id"] + 1, of["user_id"]), int(of["item_query_time"][0]), of["prediction"]


def lengths(events: EventTokens, targets: Targets) -> Lengths:
    return Lengths(1 + len(events.rows) + len(targets.rows), len(targets.rows))


def test_the_definition_and_the_reader_are_the_trainers() -> None:
    found = model().model
    for number in range(3):
        events, targets, now_s, expected = request(number)
        own = lengths(events, targets)
        reader = DlrmReader(found, own)
        with torch.inference_mode():
            raw = [reader.raw(reader.read(events, targets.context, now_s * 1000), targets, size) for size in (1, 7, 64)]
            raw.append(found.masked(events, targets, now_s * 1000, own))
        assert expected.max() > 0.05  # or the bound would say nothing
        for one in raw:
            assert float((one.sigmoid()[:, 0] - expected).abs().max()) <= BOUND


def test_a_candidate_scores_the_same_whoever_is_asked_with_it() -> None:
    found = model().model
    found.cast(torch.float64)
    events, targets, now_s, _ = request(1)
    reader = DlrmReader(found)
    with torch.inference_mode():
        side = reader.read(events, targets.context, now_s * 1000)
        together = reader.raw(side, targets, 64)
        for index in range(len(targets.rows)):
            alone = reader.raw(side, targets.part(torch.tensor([index])), 64)
            assert float((alone - together[index]).abs().max()) <= MATES_BOUND


def test_what_serves_is_the_definition() -> None:
    """The layers on the fused kernel, where it runs."""
    found = model().model
    served = [serve_events(found, backend) for backend in ("auto", "reference")]
    for number in range(3):
        events, targets, now_s, _ = request(number)
        with torch.inference_mode():
            scores = [
                found.scores(one.reader.raw(one.reader.read(events, targets.context, now_s * 1000), targets, 16))
                for one in served
            ]
        assert float((scores[0] - scores[1]).abs().max()) <= BOUND


def keys_of(found: DlrmV3, events: EventTokens, context: Tensor, now_s: int) -> Tensor:
    with torch.inference_mode():
        side = DlrmReader(found).read(events, context, now_s * 1000)
    assert isinstance(side, RequestKeys)
    return side.keys[0][0]


def test_its_keys_are_of_one_request() -> None:
    """The probe behind `prefix_stable = False`: an event more moves them, and so does a later request."""
    found = model().model
    events, targets, _, _ = request(1)
    before = EventTokens(*(getattr(events, name)[:-1] for name in EventTokens.__slots__))
    now_s = int(before.times[-1]) // 1000 + 60
    shorter = keys_of(found, before, targets.context, now_s)
    longer = keys_of(found, events, targets.context, now_s)[:, : shorter.shape[1]]
    later = keys_of(found, before, targets.context, now_s + 3_600)
    assert not found.prefix_stable
    for other in (longer, later):
        assert float((shorter - other).abs().max()) > 1e-3
