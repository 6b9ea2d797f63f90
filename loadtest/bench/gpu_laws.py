"""The laws of mfalcon.laws on a random checkpoint and a CUDA device, where there is no `mfalcon verify`.

Needs pydantic, safetensors and what the engine imports (`loadtest.bench.gpu_wheels` says which packages).
"""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import Shape
from mfalcon.laws import check
from mfalcon.models import checkpoint

SMALL = Shape("laws", num_layers=3, dim=64, num_heads=2)
DTYPES = ("float32", "bfloat16")


def step(file: Path, budget_s: float, commit: str | None) -> bool:
    """A step of `loadtest.bench.gpu_all`: every law in every dtype. False if one is broken."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random"
        made = random_checkpoint(SMALL, num_items=500, max_history=512)
        checkpoint.save(path, made.model, made.items)
        for dtype in DTYPES:
            loaded = checkpoint.load(path, getattr(torch, dtype), "cuda")
            for result in check(loaded):
                rows.append({"dtype": dtype, **asdict(result), "holds": result.holds})
                verdict = "holds" if result.holds else "BROKEN"
                print(f"{dtype} law {result.law}: {result.statement}: {result.worst:.1e}, {verdict}", flush=True)
    file.write_text(json.dumps({"device": "cuda", "laws": rows}) + "\n", encoding="utf-8")
    return all(row["holds"] for row in rows)
