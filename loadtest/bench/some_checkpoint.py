"""A checkpoint to try things with: the demo's where it was trained, else one of random weights."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import shape_named
from mfalcon.models import checkpoint

DEMO = Path("checkpoints/ml-100k-dfgr")
_RANDOM_ITEMS = 1_682


@contextmanager
def some_checkpoint(given: Path | None) -> Iterator[Path]:
    """The given one, else the demo's, else of shape S, for as long as it is needed: no time depends on the weights."""
    if given is not None or DEMO.is_dir():
        yield given or DEMO
        return
    with tempfile.TemporaryDirectory(prefix="mfalcon-") as scratch:
        path = Path(scratch) / "random-S"
        loaded = random_checkpoint(shape_named("S"), _RANDOM_ITEMS, dtype=torch.float32)
        checkpoint.save(path, loaded.model, loaded.items)
        yield path
