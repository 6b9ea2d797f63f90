"""Counts every call of our service at the edge of gRPC, whatever its end."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import grpc
import grpc.aio

from server.arrivals import Arrival, Arrivals, current

VERBS: Final = {
    "Rank": "rank",
    "AppendEvents": "append_events",
    "Prefill": "prefill",
    "DeleteUser": "delete_user",
    "GetModel": "get_model",
    "ListModels": "list_models",
}
OK: Final = grpc.StatusCode.OK.name
CANCELLED: Final = grpc.StatusCode.CANCELLED.name
DEADLINE: Final = grpc.StatusCode.DEADLINE_EXCEEDED.name
REFUSED: Final = grpc.StatusCode.RESOURCE_EXHAUSTED.name
"""What gRPC itself answers, without a word to us, to a message that is too large and to a call too many."""

Context = grpc.aio.ServicerContext[Any, bytes]
Method = Callable[[Any, Context], Awaitable[bytes]]


class CountedService(grpc.GenericRpcHandler):
    """A service whose methods answer with one message."""

    def __init__(self, name: str, service: grpc.GenericRpcHandler, arrivals: Arrivals) -> None:
        self._prefix = f"/{name}/"
        self._service = service
        self._arrivals = arrivals
        self._counted: dict[str, grpc.RpcMethodHandler[Any, bytes]] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, bytes] | None":
        """Begin to count a call; runs in the task that will answer it."""
        path = handler_call_details.method
        if not path.startswith(self._prefix):
            return None
        handler = self._counted.get(path)
        if handler is None:
            found = self._service.service(handler_call_details)
            if found is None:
                self._arrivals.refused(grpc.StatusCode.UNIMPLEMENTED.name)
                return None
            handler = self._counted[path] = self._wrapped(found)
        arrival = self._arrivals.begin(VERBS[path.removeprefix(self._prefix)])
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(partial(self._ended, arrival))
        return handler

    def _wrapped(self, handler: "grpc.RpcMethodHandler[Any, bytes]") -> "grpc.RpcMethodHandler[Any, bytes]":
        return grpc.stream_unary_rpc_method_handler(self._method(cast(Method, handler.stream_unary)))

    def _method(self, method: Method) -> Method:
        async def counted(messages: Any, context: Context) -> bytes:
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
            self._arrivals.end(arrival, OK, answered=True)
            return answer

        return counted

    def _ended(self, arrival: Arrival, _: "asyncio.Task[object]") -> None:
        self._arrivals.end(arrival, REFUSED)


def is_late(context: Context, granted_s: float | None) -> bool:
    """Whether a call that was ended from outside has met its deadline, and not a caller that left. The caller ends it
    a little before we should, as gRPC rounds times on the wire up by a hundredth at most.
    """
    left = context.time_remaining()
    return left is not None and granted_s is not None and left <= 0.01 + 0.02 * granted_s
