"""The form of a DLRM-v3 whose states outlive a request: it says so, is so, and is told apart from the trainer's own."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.select import reference
from mfalcon.cli.import_model import app
from mfalcon.engine.probe import probe
from mfalcon.errors import ConfigError
from mfalcon.importing.dlrm_v3 import Imported, imported
from mfalcon.importing.parity import ParityRequest, asked_of, scores_of
from mfalcon.importing.sidecar import Sidecar
from mfalcon.importing.stabilise import moved, stabilised
from mfalcon.models.base import EventTokens, context_codes
from mfalcon.models.checkpoint import load
from mfalcon.models.dlrm_stable import DlrmV3Stable
from mfalcon.testing import is_prefix_stable
from tests.importing.test_import import parity_lines
from tests.importing.writer import SIDECAR, golden_weights, random_weights, write_checkpoint

NOW_S = 1_700_000_000
HISTORY = 25


def both(history: int = HISTORY, **changes: object) -> tuple[Imported, DlrmV3Stable]:
    """A model of random weights as its trainer's, without features of the user, and in that form."""
    weights, sidecar = random_weights()
    users = [name for name in weights if "_batched_contextual" in name or name.endswith(("user", "sex", "age.weight"))]
    left = {name: t for name, t in weights.items() if name not in users and "embeddings.user" not in name}
    left = {name: t for name, t in left.items() if "embeddings.sex" not in name}
    at = {"history": history, "time_s": NOW_S, **changes}
    side = Sidecar.model_validate(sidecar.model_dump() | {"user_features": (), "stabilise": at})
    found = imported(left, side)
    return found, stabilised(found, side)


def request(length: int, time_s: int = NOW_S) -> ParityRequest:
    return ParityRequest(
        items=tuple(range(length)),
        actions=(1,) * length,
        times_s=tuple(NOW_S - 1_000 * (length - index) for index in range(length)),
        candidates=(3, 5, 7),
        time_s=time_s,
        padded_len=1,
        scores={"buy": (0.0,) * 3},
    )


def scores(found: Imported, stable: DlrmV3Stable, one: ParityRequest) -> torch.Tensor:
    """Of the stabilised form, in an append after a prefill."""
    events, targets, now_ms = asked_of(found, one)
    served, half = reference(stable), len(events.rows) // 2
    parts = [
        EventTokens(*(getattr(events, name)[at] for name in EventTokens.__slots__))
        for at in (slice(half), slice(half, None))
    ]
    context = torch.from_numpy(context_codes(stable.config.context_features, {}, now_ms))
    with torch.inference_mode():
        state = append(served, prefill(served, parts[0]), parts[1])
        return score(served, state, replace(targets, context=context), now_ms, 2)


def test_at_its_anchor_it_is_the_trainers_own() -> None:
    """Without features of the user; of another length or at another time it is not."""
    found, stable = both()
    expected = torch.from_numpy(scores_of(found, request(HISTORY), found.model.lengths)).float()
    assert float((scores(found, stable, request(HISTORY)) - expected).abs().max()) <= 1e-6
    for other in (request(HISTORY - 9), request(HISTORY, NOW_S + 40 * 86_400)):
        gap = scores(found, stable, other) - torch.from_numpy(scores_of(found, other, found.model.lengths)).float()
        assert float(gap.abs().max()) > 1e-4


def test_its_states_outlive_a_request() -> None:
    """It says so, a probe finds it so, and a later request moves neither a key nor a value."""
    found, stable = both()
    assert stable.prefix_stable and not found.model.prefix_stable
    probe(reference(stable))
    stable.cast(torch.float64)
    events, _, _ = asked_of(found, request(HISTORY))
    with torch.inference_mode():
        whole = prefill(reference(stable), events)
        part = prefill(reference(stable), EventTokens(*(getattr(events, name)[:9] for name in EventTokens.__slots__)))
    for layer in range(stable.config.stack[1]):
        for a, b in zip(whole.read(layer, 0, 9), part.read(layer), strict=True):
            assert float((a - b).abs().max()) <= 1e-12


def test_the_difference_is_measured() -> None:
    found, stable = both()
    none = moved(found, stable, [request(HISTORY)])
    assert none.worst <= 1e-6 and none.same_order == 1.0 and not none.made_up
    some = moved(found, stable, None)
    assert some.made_up and some.num_requests == 32 and 1e-4 < some.mean <= some.worst and 0 < some.same_order < 1


def test_the_command_makes_it_only_if_asked(tmp_path: Path) -> None:
    """With features of the user, which leave; `verify` and a server then find a model with states."""
    folder = write_checkpoint(tmp_path / "theirs", golden_weights())
    times = [line["time_s"] for line in parity_lines()]
    (tmp_path / "side.toml").write_text(f"stabilise = {{history = 60, time_s = {times[0]}}}\n{SIDECAR}")
    (tmp_path / "asked").write_text("\n".join(json.dumps(line) for line in parity_lines()))
    command = ["dlrm-v3", str(folder), "--config", str(tmp_path / "side.toml"), "--out", str(tmp_path / "ours")]
    command += ["--requests", str(tmp_path / "asked"), "--stabilise"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "Stabilised: states outlive a request" in result.output and "On 3 requests they move by" in result.output
    assert "NOT the trainer's" not in result.output  # that is said of the import itself
    loaded = load(tmp_path / "ours", torch.float64)
    assert loaded.model.prefix_stable and loaded.model.config.window_chunk == 25
    assert [feature.unit_s for feature in loaded.model.config.context_features] == [3_600, 86_400]
    assert is_prefix_stable(loaded)


def test_it_must_be_said_where_it_counts_from() -> None:
    found = imported(golden_weights(), Sidecar.model_validate(tomllib.loads(SIDECAR)))
    with pytest.raises(ConfigError, match=r"must have \[stabilise\] with history and time_s"):
        stabilised(found, Sidecar.model_validate(tomllib.loads(SIDECAR)))
