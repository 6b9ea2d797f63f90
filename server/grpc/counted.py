"""Counts every call of our service at the edge of gRPC, whatever its end."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import grpc
import grpc.aio

from mfalcon.rank_key import RANK_KEY
from server import tracing
from server.arrivals import Arrival, Arrivals, current
from server.grpc.guard import AUTHORIZATION
from server.request_ids import REQUEST_ID

OK: Final = grpc.StatusCode.OK.name
CANCELLED: Final = grpc.StatusCode.CANCELLED.name
DEADLINE: Final = grpc.StatusCode.DEADLINE_EXCEEDED.name
REFUSED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED.name
"""What gRPC itself answers, without a word to us, to a message that is too large and to a call too many."""

Context = grpc.aio.ServicerContext[Any, bytes]
Method = Callable[[Any, Context], Awaitable[bytes | None]]


class CountedService(grpc.GenericRpcHandler):
    """A service whose methods answer with one message, or write several."""

    def __init__(self, name: str, service: grpc.GenericRpcHandler, arrivals: Arrivals) -> None:
        self._name, self._prefix = name, f"/{name}/"
        self._service = service
        self._arrivals = arrivals
        self._counted: dict[str, tuple[str, grpc.RpcMethodHandler[Any, bytes]]] = {}
        """Verb and handler by path."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, bytes] | None":
        """Begin to count a call; runs in the task that will answer it."""
        path = handler_call_details.method
        if not path.startswith(self._prefix):
            return None
        known = self._counted.get(path)
        if known is None:
            handler = self._service.service(handler_call_details)
            if handler is None:
                self._arrivals.refused(grpc.StatusCode.UNIMPLEMENTED.name)
                return None
            verb = verb_of(path.removeprefix(self._prefix))
            if handler.stream_stream is None:
                method = self._method(cast(Method, handler.stream_unary))
                known = verb, grpc.stream_unary_rpc_method_handler(method)
            else:
                method = self._method(cast(Method, handler.stream_stream))
                known = verb, grpc.stream_stream_rpc_method_handler(method)
            self._counted[path] = known
        verb, handler = known
        keys, request_id, headers, credentials = list[str](), None, dict[str, str](), list[str | bytes]()
        for name, value in handler_call_details.invocation_metadata or ():
            if name == RANK_KEY:
                keys.append(str(value))
            elif name == AUTHORIZATION:
                credentials.append(value)
            elif name == REQUEST_ID:
                request_id = str(value) if request_id is None else request_id
            elif name in tracing.HEADERS:
                headers[name] = str(value)
        arrival = self._arrivals.begin(verb, ",".join(keys), request_id, headers)
        arrival.credentials = credentials
        arrival.service = self._name
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(partial(self._ended, arrival))
        return handler

    def _method(self, method: Method) -> Method:
        async def counted(messages: Any, context: Context) -> bytes | None:
            arrival, granted_s = current(), context.time_remaining()
            try:
                answer = await method(messages, context)
            except asyncio.CancelledError:
                self._arrivals.end(arrival, DEADLINE if is_late(context, granted_s) else CANCELLED)
                raise
            except grpc.aio.AbortError:
                self._arrivals.end(arrival, grpc.StatusCode(context.code()).name)
                raise
            except grpc.aio.BaseError:  # the call had ended: nobody was told
                unmet = CANCELLED if arrival.is_whole else REFUSED
                self._arrivals.end(arrival, DEADLINE if is_late(context, granted_s) else unmet)
                raise
            if answer is not None:  # a stream counts its own
                arrival.bytes_out = len(answer)
            self._arrivals.end(arrival, OK, answered=True)
            return answer

        return counted

    def _ended(self, arrival: Arrival, _: "asyncio.Task[object]") -> None:
        self._arrivals.end(arrival, REFUSED)
        arrival.when_closed()


def verb_of(method: str) -> str:
    """The name of a method as HTTP and the code have it: AppendEvents is append_events."""
    return re.sub("(?<!^)(?=[A-Z])", "_", method).lower()


def is_late(context: Context, granted_s: float | None) -> bool:
    """Whether a call that was ended from outside has met its deadline, and not a caller that left. The caller ends it
    a little before we should, as gRPC rounds times on the wire up by a hundredth at most.
    """
    left = context.time_remaining()
    return left is not None and granted_s is not None and left <= 0.01 + 0.02 * granted_s
