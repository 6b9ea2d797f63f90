"""A gRPC server that answers as it is told, whatever it is asked, and keeps what it was sent."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from proto import ranking_pb2 as pb

Step = Callable[["Scripted", "Asked", grpc.ServicerContext], bytes]
"""What becomes of one call."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as it came. metadata: the values by their names."""

    method: str
    request: bytes
    metadata: dict[str, str | bytes]


@dataclass(slots=True)
class Scripted(grpc.GenericRpcHandler):
    """The steps are taken in turn, the last one again and again."""

    steps: Sequence[Step]
    asked: list[Asked] = field(default_factory=list)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """One for each call that came."""
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    """One for each call that was ended from outside while it had no answer."""
    address: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        method = handler_call_details.method.rpartition("/")[2]

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            metadata = dict(context.invocation_metadata())
            with self._lock:
                step = self.steps[min(len(self.asked), len(self.steps) - 1)]
                asked = Asked(method, request, metadata)
                self.asked.append(asked)
            self.begun.release()
            return step(self, asked, context)

        return grpc.unary_unary_rpc_method_handler(handle)

    async def wait_for(self, num_calls: int) -> None:
        """Wait for so many more calls."""
        for _ in range(num_calls):
            assert await asyncio.to_thread(self.begun.acquire, timeout=60)


@contextmanager
def scripted(*steps: Step, address: str = "127.0.0.1:0") -> Iterator[Scripted]:
    """A server of these steps on loopback."""
    script = Scripted(steps)
    with running(script, address):
        yield script


@contextmanager
def running(script: Scripted, address: str, credentials: grpc.ServerCredentials | None = None) -> Iterator[None]:
    """A server on an address, whose port 0 is any free one."""
    with ThreadPoolExecutor(32) as threads:
        server = grpc.server(threads, [script], options=[("grpc.so_reuseport", 0)])
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
        script.address = f"127.0.0.1:{port}"
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


def says(message: pb.RankResponse | pb.AppendEventsResponse | pb.CacheInfo | pb.DeleteUserResponse) -> Step:
    """An answer."""
    return lambda *_: message.SerializeToString()


def raw(answer: bytes) -> Step:
    """An answer of these bytes."""
    return lambda *_: answer


def fails(code: str, details: str = "as the script says", **trailers: str) -> Step:
    """A status; trailers with _ for -."""

    def step(_: Scripted, __: Asked, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(tuple((name.replace("_", "-"), value) for name, value in trailers.items()))
        context.abort(grpc.StatusCode[code], details)
        raise AssertionError

    return step


def never(script: Scripted, _: Asked, context: grpc.ServicerContext) -> bytes:
    """No answer until the call is ended from outside."""
    over = threading.Event()
    context.add_callback(over.set)
    over.wait(60)
    script.ended.release()
    return b""


RANKED = pb.RankResponse(scores=[0.5, 0.25], tasks=["like"], task_scores=[0.5, 0.25], num_scored=2, history_len=7)
