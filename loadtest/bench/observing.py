"""What it costs to be watched: processor time of a rank with nothing on, with the access log, and with traces.

    python -m loadtest.bench.observing CHECKPOINT [--requests 300] [--candidates 1000]

Servers of one model, each watched otherwise, are asked in turn, in an order that changes. What a process took is what
the system says of it, its threads that write and send included. Ratios are to the first server; `off again` is one like
it, and says how far such ratios scatter. The collector is another process. p50 is what a client waits that asks again
at once, so it has the work in it that follows an answer.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from proto import ranking_pb2, ranking_pb2_grpc

ROOT = Path(__file__).parents[2]
HERTZ = os.sysconf("SC_CLK_TCK")
ROUND = 25
"""Requests between two looks at the clock of a process, which ticks a hundred times a second."""
HISTORY = 200
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass(slots=True)
class Watched:
    """A server; what it took of the processor in each round, in seconds a request, and what each request waited."""

    name: str
    options: tuple[str, ...]
    process: Process | None = None
    address: str = ""
    rounds: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    async def start(self, checkpoint: Path) -> None:
        """Return once it serves."""
        command = (sys.executable, "-m", "mfalcon.cli", "serve", "--checkpoint", str(checkpoint), "--threads", "1")
        ports = ("--grpc-port", "0", "--http-port", "0", "--kv-budget-mb", "64")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'client'}:{ROOT}"}
        self.process = await asyncio.create_subprocess_exec(
            *command, *ports, *self.options, cwd=ROOT, env=environment, stdout=PIPE, stderr=DEVNULL
        )
        assert self.process.stdout is not None
        self.address = (await self.process.stdout.readline()).decode().split()[1].removeprefix("grpc=")

    def seconds(self) -> float:
        """Of the processor, so far."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / HERTZ


def collect(port_to: int) -> None:
    """A collector that answers and keeps nothing, until it is ended."""
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
    server = grpc.server(ThreadPoolExecutor(1))
    service, _, method = EXPORT[1:].partition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    os.write(port_to, str(server.add_insecure_port("127.0.0.1:0")).encode())
    server.start()
    signal.pause()


async def measure(servers: list[Watched], num_requests: int, num_candidates: int) -> None:
    """Ask all of them in turn."""
    async with contextlib.AsyncExitStack() as stack:
        stubs = []
        for server in servers:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address))
            stubs.append(ranking_pb2_grpc.RankingStub(channel))
        events = [
            ranking_pb2.Event(item_id=1 + n % 900, actions=1, value=1.0, time_ms=10**12 + n) for n in range(HISTORY)
        ]
        request = ranking_pb2.RankRequest(user_id="ann", candidates=range(1, num_candidates + 1), top_k=50)
        for stub in stubs:
            await stub.AppendEvents(ranking_pb2.AppendEventsRequest(user_id="ann", events=events))
            for _ in range(20):
                await stub.Rank(request)
        for number in range(-(-num_requests // ROUND)):
            for server, stub in random.Random(number).sample(list(zip(servers, stubs, strict=True)), len(servers)):
                before = server.seconds()
                for _ in range(ROUND):
                    asked = time.perf_counter()
                    await stub.Rank(request)
                    server.waits.append(time.perf_counter() - asked)
                server.rounds.append((server.seconds() - before) / ROUND)


async def run(checkpoint: Path, num_requests: int, num_candidates: int) -> None:
    """Print the table."""
    read, write = os.pipe()
    collector = os.fork()
    if not collector:
        collect(write)
    endpoint = f"http://127.0.0.1:{os.read(read, 16).decode()}"
    directory = Path(tempfile.mkdtemp(prefix="observing-"))
    servers = [
        Watched("off", ()),
        Watched("off again", ()),
        Watched("access log, all", ("--access-log", str(directory / "access.log"))),
        Watched("traces, 1%", ("--otlp-endpoint", endpoint, "--trace-sample", "0.01")),
        Watched("traces, all", ("--otlp-endpoint", endpoint)),
    ]
    try:
        for server in servers:
            await server.start(checkpoint)
        await measure(servers, num_requests, num_candidates)
    finally:
        os.kill(collector, signal.SIGTERM)
        for server in servers:
            if server.process is not None:
                server.process.terminate()
                await server.process.wait()
    print("| watched | CPU a rank, ms | to off | p50, ms | to off |\n|---|---|---|---|---|")
    off = servers[0]
    for server in servers:
        took, wait = statistics.mean(server.rounds), statistics.median(server.waits)
        to_off = took / statistics.mean(off.rounds), wait / statistics.median(off.waits)
        print(f"| {server.name} | {1e3 * took:.2f} | {to_off[0]:.3f} | {1e3 * wait:.2f} | {to_off[1]:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=1_000)
    given = parser.parse_args()
    asyncio.run(run(given.checkpoint.absolute(), given.requests, given.candidates))
