"""What 32 clients get through gRPC of a server on a device, each with a user whose state is cached.

Needs what a server imports (`loadtest.bench.gpu_wheels.SERVING`), grpc among it. The ranker is that of `gpu_engine`;
clients and server share the machine's cores.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.bench import serve
from loadtest.bench.gpu_engine import EngineCell
from loadtest.bench.gpu_engine_sizes import NUM_ITEMS, REAL, REHEARSAL, Sizes
from loadtest.bench.gpu_record import CELL, Record
from loadtest.bench.gpu_run import START_S, asked, backend_of
from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.report.result import say
from mfalcon.models import checkpoint

_SERVER_S = 12.0
"""Assumed for a server that starts and is asked for two rounds."""
_SERVE = """
import sys
from pathlib import Path
from server.app import serve
from server.config import ServerConfig
path, device, dtype, backend = sys.argv[1:]
serve(ServerConfig(checkpoint=Path(path), device=device, dtype=dtype, backend=backend, grpc_port=0, http_port=0))
"""
"""A server as `mfalcon serve` starts it, where there may be no typer."""


def measure(sizes: Sizes, backend: str, seconds: float) -> EngineCell:
    """One cell. seconds: of each of two rounds."""
    made = random_checkpoint(sizes.shape, NUM_ITEMS, max_history=sizes.max_history)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random"
        checkpoint.save(path, made.model, made.items)
        with _serving(path, sizes, backend) as target:
            options = serve.ServeOptions(
                {"server": target},
                num_clients=sizes.many,
                num_candidates=sizes.m,
                num_events=sizes.short,
                num_items=NUM_ITEMS,
                seconds=seconds,
                rounds=2,
            )
            (row,) = serve.run(options, say).rows
    return EngineCell("through gRPC", sizes.m, sizes.short, sizes.many, p50_ms=row.p50_ms, per_second=row.per_second)


@contextmanager
def _serving(path: Path, sizes: Sizes, backend: str) -> Iterator[str]:
    """The address of a server of its own."""
    command = [sys.executable, "-c", _SERVE, str(path), sizes.device, sizes.dtype, backend]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise RuntimeError("the server did not start")
            yield dict(part.split("=", 1) for part in line.split()[1:])["grpc"]
        finally:
            process.terminate()


def main() -> None:
    """A rehearsal asks something tiny, on the CPU."""
    given = asked(__doc__)
    backend = backend_of(given)
    cell = measure(REHEARSAL, backend, 0.2) if given.rehearse else measure(REAL, backend, 2.0)
    record = Record(given.record, "grpc")
    record.add(CELL, cell)
    if given.rehearse:
        record.predict(2 * START_S + _SERVER_S)


if __name__ == "__main__":
    main()
