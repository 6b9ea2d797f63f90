"""The laws of mfalcon.laws on a random checkpoint and a device, where there is no `mfalcon verify`."""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from loadtest.bench.gpu_record import LAW, Record, Turns, read
from loadtest.bench.gpu_run import START_S, asked, backend_of
from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import Shape
from mfalcon.laws import check
from mfalcon.models import checkpoint

_KV_DTYPES = ("auto", "int8", "fp8")
_LAW_S = 0.3
"""Assumed for a figure of a law on pages of one kind."""
SMALL = Shape("laws", num_layers=3, dim=64, num_heads=2)


def measure(
    device: str, backend: str, kv_dtypes: tuple[str, ...], record: Record, time_is_up: Callable[[], bool]
) -> None:
    """Every law in bfloat16, by what the pages hold. Whatever fails is a broken law of that kind of pages."""
    made = random_checkpoint(SMALL, num_items=500, max_history=512)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random"
        checkpoint.save(path, made.model, made.items)
        turns = Turns(record)
        for kv_dtype in kv_dtypes:
            if not turns.begin(kv_dtype):
                continue
            try:
                for law in check(checkpoint.load(path, torch.bfloat16, device), backend=backend, kv_dtype=kv_dtype):
                    record.add(LAW, {"scenario": f"pages {kv_dtype}", **asdict(law), "holds": law.holds})
                    if time_is_up():
                        return
            except Exception as error:  # noqa: BLE001 (whatever fails ends a kind of pages, not the run)
                failed = {"scenario": f"pages {kv_dtype}", "statement": f"{type(error).__name__}: {error}"[:500]}
                record.add(LAW, {**failed, "worst": None, "holds": False})


def main() -> None:
    """Exit code 1 if a law is broken. A rehearsal measures them on the CPU."""
    given = asked(__doc__)
    kv_dtypes = _KV_DTYPES[:1] if given.rehearse else _KV_DTYPES
    device, backend = "cpu" if given.rehearse else "cuda", backend_of(given)
    measure(device, backend, kv_dtypes, Record(given.record, "laws"), given.time_is_up)
    if given.rehearse:
        Record(given.record, "laws").predict(START_S + _LAW_S * len(_KV_DTYPES) * len(read(given.record, LAW)))
    sys.exit(1 if any(not law["holds"] for law in read(given.record, LAW)) else 0)


if __name__ == "__main__":
    main()
