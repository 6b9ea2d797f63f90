"""`mfalcon bench state` and `state-quality` on the tiny shape: what they print is well-formed, what they claim follows
from what they measured.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from loadtest.bench import state as bench_state
from loadtest.bench import state_quality
from loadtest.bench.state import StateOptions, StateResult, bars, crossover, regret
from loadtest.bench.state_quality import round_trip, spearman
from loadtest.report.pages import state_page
from loadtest.report.table import as_text
from mfalcon.algorithm import prefill
from mfalcon.backends.select import reference
from mfalcon.cli import bench_state as command
from mfalcon.errors import ConfigError
from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import build, prefix_rankers
from mfalcon.train.evaluate import evaluate
from mfalcon.train.recipes import model_config
from mfalcon.train.sequences import Visibility
from mfalcon.train.splits import TEST, split
from mfalcon.train.synthetic import synthetic
from tests.small import random_events, small_checkpoint, tokens

TINY = ("--shape", "tiny", "--n", "8", "--n", "33", "--rounds", "1", "--learning", "1", "--threads", "1")
CELL = {"shape", "network", "payload", "tier", "n", "recompute_ms", "fetch_ms", "host_ms", "acquire_ms"} | {
    *("predicted_recompute_ms", "predicted_fetch_ms", "fetch_chosen", "regret"),
}

VISIBILITIES: tuple[Visibility, ...] = ("strict", "order")

app = typer.Typer()
app.command("state")(command.state)
app.command("state-quality")(command.quality)


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def result() -> StateResult:
    options = StateOptions(("tiny",), (8, 33), networks=("loopback", "lan"), learning=1, rounds=2)
    return bench_state.run(options, lambda _: None)


def test_every_cell_is_measured_and_no_regret_is_below_one(result: StateResult) -> None:
    expected = [
        (network, payload, tier, n)
        for network in ("loopback", "lan")
        for payload in ("float32", "bfloat16", "int8")
        for tier in ("host", "behind", "redis")
        for n in (8, 33)
    ]
    assert [(cell.network, cell.payload, cell.tier, cell.n) for cell in result.cells] == expected
    for cell in result.cells:
        assert cell.regret >= 1
        assert cell.fetch_ms.num_samples == cell.recompute_ms.num_samples == 2
        assert cell.fetch_speedup == pytest.approx(cell.recompute_ms.median_ms / cell.fetch_ms.median_ms)
        assert (cell.host_ms is None) == (cell.acquire_ms is None) == (cell.tier != "host")
        if cell.network == "lan":
            assert cell.fetch_ms.min_ms >= 2  # the proxy's delay
    assert len(result.crossovers) == 6


def test_one_event_writes_the_last_chunk_and_sends_little(result: StateResult) -> None:
    assert [counts.dtype for counts in result.append] == ["float32", "bfloat16", "int8"]
    for counts in result.append:
        assert counts.chunks_written == 1
        # Header, position and event in one framed reply; the whole log is 32 events.
        assert 24 + 112 < counts.log_bytes_sent < 24 + 160
        assert counts.log_bytes_full > 32 * 24


def test_memory_of_short_states_is_told_too(result: StateResult) -> None:
    """Small pages of 32 tokens."""
    assert [(at.n, at.bytes_held * at.n // at.bytes_of_content) for at in result.memory] == [
        (8, 32),
        (20, 32),
        (33, 64),
    ]


def test_json_is_what_was_measured(result: StateResult) -> None:
    parsed: dict[str, Any] = json.loads(json.dumps(asdict(result), allow_nan=False))
    assert set(parsed["cells"][0]) == CELL
    assert parsed["bars"] == [asdict(bar) for bar in result.bars]
    assert bars(result.cells, result.sizes, result.append) == list(result.bars)


def test_command_prints_one_object_and_draws(tmp_path: Path) -> None:
    path = tmp_path / "state.png"
    shown = invoke("state", *TINY, "--network", "loopback", "--payload", "int8", "--json", "--plot", str(path))
    found = json.loads(shown.stdout)
    assert found["benchmark"] == "state" and found["machine"]["threads"] == 1
    assert {cell["tier"] for cell in found["cells"]} == {"host", "behind", "redis"}
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_tables_render(result: StateResult) -> None:
    shown = as_text(state_page(result))
    assert (
        "Bytes of a state in the block pool" in shown
        and "Crossover" in shown
        and "chunks written" in shown
        and "regret" in shown
    )


def test_unknown_names_are_refused() -> None:
    for options, problem in (
        (StateOptions(("XL",)), "shape: got 'XL'"),
        (StateOptions(payloads=("int4",)), "payload dtype: got 'int4'"),
        (StateOptions(networks=("wan",)), "network: got 'wan', must be one of loopback, lan, slow"),
        (StateOptions(redis_url="redis://x"), "only loopback"),
    ):
        with pytest.raises(ConfigError, match=problem):
            bench_state.run(options, lambda _: None)


def test_regret_is_the_cost_of_choices_over_the_better_way() -> None:
    assert regret([True], 2.0, 3.0) == regret([False], 3.0, 2.0) == 1
    assert regret([False], 2.0, 3.0) == 1.5
    assert regret([True, False], 2.0, 3.0) == 1.25


def test_crossover_of_known_curves() -> None:
    lengths = [64, 128, 256, 512, 1024]
    # Fetching costs 10 + n / 100, recomputing n / 20: equal at 250. Interpolated between powers of two.
    assert crossover([(n, 10 + n / 100, n / 20) for n in lengths]) == pytest.approx(250, rel=0.02)
    # Powers of n are straight in logarithms: exact.
    assert crossover([(n, n**1.0, n**2 / 300) for n in lengths]) == pytest.approx(300)
    assert crossover([(n, 1.0, 2.0) for n in lengths]) == 0
    assert crossover([(n, 2.0, 1.0) for n in lengths]) is None
    # A win at short lengths alone is none: what counts is from where it wins for good.
    assert crossover([(64, 1.0, 2.0), (128, 4.0, 2.0), (256, 1.0, 2.0)]) == pytest.approx(128 * 2**0.5)


def test_spearman_ranks_ties_alike() -> None:
    a = np.array([1, 2, 2, 3], dtype=np.float32)
    assert spearman(a, a) == pytest.approx(1) and spearman(a, -a) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3.5, 3.5: the mean is 2.5, the squares sum to 4.5 each, the products to 3.75.
    assert spearman(a, np.array([1, 2, 3, 3], dtype=np.float32)) == pytest.approx(5 / 6)


def test_a_round_trip_is_exact_at_the_models_own_type() -> None:
    checkpoint = small_checkpoint()
    state = prefill(reference(checkpoint.model), tokens(checkpoint, random_events(9)))
    back, coarse = round_trip(state, PayloadDtype.FLOAT64), round_trip(state, PayloadDtype.INT8)
    for layer in range(state.pool.layout.shape.num_layers):
        assert (back.read(layer)[0] == state.read(layer)[0]).all()
        # Half a step of 1/127 of a head's largest number, which is below 20 here.
        assert 0 < (coarse.read(layer)[1] - state.read(layer)[1]).abs().max() < 20 / 127


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_quality_of_exact_payloads_is_that_of_the_evaluation(architecture: str) -> None:
    dataset = synthetic(20, 40, 30, seed=2)
    chosen = split(dataset, "A") == TEST
    model = build(model_config(dataset, architecture, dim=8, max_history=20, window_chunk=5)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.4, generator=generator)
    model.items.load_items(dataset.items)
    checkpoint = Checkpoint(model.eval(), dataset.items, "quality")
    found = state_quality.measure(checkpoint, dataset, chosen, lambda _: None, ("float32", "int8"))
    assert [(row.visibility, row.payload, row.how) for row in found.rows] == [
        (visibility, payload, how)
        for visibility in ("strict", "order")
        for payload in ("float32", "int8")
        for how in ("once", "chained")
    ]
    exact = {visibility: evaluate(model, dataset, chosen, visibility)[0].auc for visibility in VISIBILITIES}
    for row in found.rows:
        assert row.exact_auc == pytest.approx(exact[row.visibility])
        if row.payload == "int8":
            assert 0 < row.worst_difference < 0.5  # of ratings up to 5
        else:  # what comes back is what was sent; a chained state is encoded piece by piece, which rounds otherwise
            assert row.worst_difference == 0 if row.how == "once" else row.worst_difference <= 1e-5
            assert row.auc == pytest.approx(row.exact_auc)
    json.dumps(asdict(found), allow_nan=False)
