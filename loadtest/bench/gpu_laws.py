"""The laws of mfalcon.laws on a random checkpoint and a device: `mfalcon verify` for a machine that lacks what the
command needs beside it. `--save DIR` writes that checkpoint and checks nothing.

Needs pydantic, safetensors and what the engine imports (loadtest/bench/gpu_all.py lists the wheels).
"""

import argparse
import json
import sys
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


def save(directory: Path) -> None:
    """Write the checkpoint."""
    made = random_checkpoint(SMALL, num_items=500, max_history=512)
    checkpoint.save(directory, made.model, made.items)


def main() -> None:
    """Print every law in every dtype; exit code 1 if one is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, metavar="DIR")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", action="append", choices=[*DTYPES, "float16"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.save is not None:
        save(given.save)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random"
        save(path)
        for dtype in given.dtype or DTYPES:
            loaded = checkpoint.load(path, getattr(torch, dtype), given.device)
            for result in check(loaded):
                rows.append({"dtype": dtype, **asdict(result), "holds": result.holds})
                verdict = "holds" if result.holds else "BROKEN"
                print(f"{dtype} law {result.law}: {result.statement}: {result.worst:.1e}, {verdict}", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({"device": given.device, "laws": rows}) + "\n", encoding="utf-8")
    sys.exit(0 if all(row["holds"] for row in rows) else 1)


if __name__ == "__main__":
    main()
