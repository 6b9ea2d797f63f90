"""`mfalcon learn-items`, in this process: what it writes is a delta of the checkpoint."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.numpy import load_file
from typer.testing import CliRunner

from mfalcon.backends.select import any_reference
from mfalcon.cli.learn_items import learn_items
from mfalcon.items.delta import Delta
from mfalcon.items.live import LiveItems
from mfalcon.models import checkpoint
from mfalcon.models.registry import build
from mfalcon.train.item_rows import without_items
from mfalcon.train.new_items import with_items_of
from mfalcon.train.recipes import model_config
from mfalcon.train.synthetic import synthetic

DATASET = synthetic(num_users=300, num_items=500, events_per_user=60, seed=0)
KNOWN = without_items(DATASET, np.arange(500) % 5 == 0)
app = typer.Typer()
app.command()(learn_items)


def saved(directory: Path) -> checkpoint.Checkpoint:
    torch.manual_seed(0)
    model = build(model_config(KNOWN, "dfgr", dim=8, num_layers=1, max_history=20, window_chunk=10)).eval()
    model.items.load_items(KNOWN.items)
    checkpoint.save(directory, model, KNOWN.items)
    return checkpoint.load(directory)


def test_what_is_learned_is_a_delta(tmp_path: Path) -> None:
    loaded, out = saved(tmp_path / "checkpoint"), tmp_path / "rows.safetensors"
    since = int(DATASET.events["time_ms"][-300])
    num_events = np.count_nonzero(DATASET.events["time_ms"] >= since)
    asked = [str(tmp_path / "checkpoint"), "--data", "synthetic", "--since-ms", str(since), "--out", str(out)]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert (
        f"100 of new items, from {num_events} events" in done.output
        and f"--version {loaded.fingerprint[:12]}" in done.output
    )
    columns = load_file(out)
    side = {name.removeprefix("side."): one for name, one in columns.items() if name.startswith("side.")}
    delta = Delta(
        0, loaded.fingerprint[:12], columns["item_id"], columns["vector"], columns["bias"], side, replaces=True
    )
    live = LiveItems(any_reference(loaded.model), loaded.items, loaded.fingerprint)
    assert live.made(delta).items.rows(DATASET.items.item_id).all()
    late = CliRunner().invoke(app, [*asked[:4], str(10**15), *asked[5:]])
    assert "must be at most the time of the last event" in str(late.exception)


def test_side_features_are_read_by_the_checkpoints_vocabulary(tmp_path: Path) -> None:
    """Of a file whose values come in another order, and of which the checkpoint lacks one."""
    loaded = saved(tmp_path)
    items, (genres, year) = DATASET.items, DATASET.side_features
    features = [one.model_copy(update={"vocabulary": ("other", *reversed(one.vocabulary))}) for one in (genres, year)]
    tags, codes = items.side["genres"], items.side["year"]
    side = {
        "genres": np.concatenate([np.ones((len(tags), 1), np.uint8), tags[:, ::-1]], axis=1),
        "year": np.where(codes > 0, len(year.vocabulary) + 2 - codes, 0),
    }
    theirs = replace(DATASET, side_features=tuple(features), items=replace(items, side=side))
    found = with_items_of(theirs, loaded).items
    assert np.array_equal(found.item_id, items.item_id)
    assert all(np.array_equal(found.side[name], one) for name, one in items.side.items())
