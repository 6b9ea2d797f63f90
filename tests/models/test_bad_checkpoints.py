"""Every kind of bad checkpoint ends a start with a clear error, in bounded time and memory; odd ones are served."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.faults.bad_checkpoints import KINDS, UNSOUND, configured, weighed
from mfalcon.algorithm import prefill, score
from mfalcon.backends.select import serve
from mfalcon.engine.probe import probe
from mfalcon.models.base import Targets
from mfalcon.models.checkpoint import load, save
from mfalcon.models.config_features import ContextFeature
from tests.small import NOW_MS, random_events, small_checkpoint, small_config, some_rows, tokens

ROOT = Path(__file__).parents[2]
START = """
import json, resource, sys, time
from pathlib import Path

from mfalcon.backends.select import PoolBudget, serve
from mfalcon.engine.probe import probe
from mfalcon.errors import CheckpointError
from mfalcon.models.checkpoint import load

def start(directory):
    model = load(Path(directory)).model
    probe(serve(model, budget=PoolBudget(1 << 20, 1, 64)))

mib, good, *bad = sys.argv[1:]
start(good)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (int(mib) << 20), resource.RLIM_INFINITY))
for directory in bad:
    try:
        start(directory)
        said = "it is served"
    except CheckpointError as error:
        said = str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps([directory, said, time.process_time(), grown]), flush=True)
"""


def good(directory: Path) -> Path:
    made = small_checkpoint(dtype=torch.float32)
    save(directory, made.model, made.items)
    return directory


def test_there_are_enough_kinds() -> None:
    assert len(KINDS) + len(UNSOUND) >= 50
    names = {damage.__name__ for damage, _, _ in KINDS} | {damage.__name__ for damage, _ in UNSOUND}
    assert len(names) == len(KINDS) + len(UNSOUND)


def test_all_kinds_are_refused_in_bounded_time_and_memory(tmp_path: Path) -> None:
    """By one process with little memory: what would take gigabytes ends in another error there, or is killed."""
    causes = {}
    for number, (damage, cause) in enumerate([*((damage, cause) for damage, _, cause in KINDS), *UNSOUND]):
        directory = good(tmp_path / str(number) / "model")
        damage(directory)
        causes[str(directory)] = cause
    command = [sys.executable, "-c", START, "1024", str(good(tmp_path / "good")), *causes]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(causes)
    previous = answers[0][2]
    for directory, said, seconds, grown_kib in answers:
        assert causes[directory] in said
        assert seconds - previous < 20, said  # CPU seconds
        assert grown_kib < 256 << 10, said
        previous = seconds


def test_memory_that_ends_while_one_is_loaded_is_said(tmp_path: Path) -> None:
    """The machine has it, this process may not take it: a table of 144 MB, twice."""
    config = small_config()
    feature = ContextFeature(name="surface", num_values=3_000_000)
    made = small_checkpoint(dtype=torch.float32, config=config.model_copy(update={"context_features": (feature,)}))
    save(tmp_path / "large", made.model, made.items)
    del made
    command = [sys.executable, "-c", START, "200", str(good(tmp_path / "good")), str(tmp_path / "large")]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "large: memory ended while it was loaded: " in done.stdout


@pytest.mark.parametrize(("damage", "cause"), [(KINDS[0][0], KINDS[0][2]), UNSOUND[0]])
def test_a_server_ends_with_an_error_and_exit_code_1(
    tmp_path: Path, damage: Callable[[Path], None], cause: str
) -> None:
    directory = good(tmp_path / "model")
    damage(directory)
    flags = ("--checkpoint", str(directory), "--grpc-port", "0", "--http-port", "0", "--threads", "1")
    done = subprocess.run(
        [sys.executable, "-m", "mfalcon.cli", "serve", *flags],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "ready" not in done.stdout
    assert "Traceback" not in done.stderr
    assert cause in done.stderr


@pytest.mark.parametrize(
    "damage",
    [
        configured(layer_attention_norm=1e-6),
        configured(layer_attention_norm=1e9),
        configured(layer_logit_scale=1e6),
        configured(layer_norm_eps=1.0),
        configured(value_scale=1e-30),
        configured(value_center=1e30),
        configured(blend={"like": 1e6, "rating": -1e6}),
        configured(name="a model: größer, 2026/11 [v2]"),
        weighed("", 0.0),
        weighed("", 1e-30),
        weighed("items.id.weight", value=1e15),
        weighed("stack.layers.0.bias.position", value=1e15),
        weighed("context.", value=1e15),
        weighed("heads.item_bias.weight", 1e20),
    ],
)
def test_what_is_odd_but_within_the_limits_is_served_with_finite_scores(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Every item, the last context, and values from one end to the other."""
    directory = good(tmp_path / "model")
    damage(directory)
    checkpoint = load(directory)
    served = serve(checkpoint.model)
    probe(served)
    events = random_events(24)
    events["item_id"] = np.resize(checkpoint.items.item_id[::-1], 24)
    events["value"][::3] = np.finfo(np.float32).max
    with torch.inference_mode():
        state = prefill(served, tokens(checkpoint, events))
        assert state.is_finite()
        context = torch.tensor([2, 23])
        scores = score(served, state, Targets(some_rows(20), context), NOW_MS, 8)
        assert torch.isfinite(scores.float()).all()
