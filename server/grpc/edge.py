"""Where a gRPC call enters and leaves us: its message is fetched and checked, and every error becomes a status.

Methods take and give raw bytes: stock grpc.aio makes UNKNOWN of a malformed message, and of one for which there was no
memory.
"""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from mfalcon.errors import (
    DamagedLog,
    DeadlineExceeded,
    EngineFailure,
    HistoryMismatch,
    InvalidInput,
    MFalconError,
    NotReady,
    Overloaded,
    PermissionDenied,
    ShuttingDown,
    StorageUnavailable,
    Superseded,
    TooFewMembers,
    Unauthenticated,
    UnknownModel,
)
from mfalcon.memory import is_out_of_memory
from server import arrivals
from server.balancing import ELSEWHERE, RETRY, Trailers, is_for_others
from server.grpc.guard import Guard, open_to_all
from server.grpc.waiting import Waiting
from server.grpc.wire import MessageLimits
from server.outcome import NOTHING_WRITTEN, OUTCOME, outcome_of
from server.refusals import GRPC_FAULTS, Refusals
from server.request_ids import REQUEST_ID

logger = logging.getLogger(__name__)

STATUS: Mapping[type[MFalconError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    HistoryMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Superseded: grpc.StatusCode.ABORTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    StorageUnavailable: grpc.StatusCode.UNAVAILABLE,
    DamagedLog: grpc.StatusCode.DATA_LOSS,
    TooFewMembers: grpc.StatusCode.UNAVAILABLE,
    EngineFailure: grpc.StatusCode.INTERNAL,
}
OUT_OF_MEMORY = "alloc failed"
"""How protobuf says that it had no memory; its exception is that of a malformed message."""

PUSHBACK = "grpc-retry-pushback-ms"
"""When to try again (gRPC's retry design, gRFC A6): clients that retry by themselves obey it."""
NEVER = "-1"
"""What they obey by not trying at all."""

HISTORY_LEN = "mfalcon-history-len"
HISTORY_VERSION = "mfalcon-history-version"
"""The length of the history, where it is not the one that an append expects."""

Context = grpc.aio.ServicerContext[bytes, bytes]
Request = TypeVar("Request", bound=Message)
Answer = Callable[[Request, float | None], Awaitable[bytes]]
"""A message and the seconds that its caller grants -> a serialized answer."""
StreamAnswer = Callable[[Request, float | None, Callable[[bytes], Awaitable[None]]], Awaitable[None]]
"""The same of several answers, each of which it writes."""


@asynccontextmanager
async def statuses(
    name: str,
    context: Context,
    status: Mapping[type[MFalconError], grpc.StatusCode] = STATUS,
    load: Callable[[], Trailers] | None = None,
    refusals: Refusals | None = None,
    *,
    writes: bool = False,
) -> AsyncIterator[None]:
    """Turn what is raised into the call's status. name: the message's, for the log. load, refusals, writes: see
    `raw_method`.
    """
    metadata: Trailers = ()
    outcome = NOTHING_WRITTEN
    try:
        yield
        return
    except grpc.aio.BaseError:  # of an abort; or the caller has left, and nobody can be told
        raise
    except DecodeError as error:
        code, text = STATUS[InvalidInput], str(error)
    except MFalconError as error:
        code, text = status.get(type(error), grpc.StatusCode.INTERNAL), str(error)
        metadata, outcome = retries_of(error), outcome_of(error)
    except Exception as error:
        logger.exception("%s failed", name)
        outcome = outcome_of(error)
        if is_out_of_memory(error):
            code, text = STATUS[Overloaded], "the server has no memory left for this request"
        else:
            code, text = grpc.StatusCode.INTERNAL, "the server failed on this request; its log has the cause"
    if writes:
        metadata = (*metadata, (OUTCOME, outcome))
    if refusals is not None and code.name in GRPC_FAULTS:
        await refusals.turn()
    await context.abort(code, text, (*metadata, *trailers(load)))


def trailers(load: Callable[[], Trailers] | None) -> Trailers:
    """What goes with every answer, good or bad: how the request is called, and how busy the server is."""
    request_id = arrivals.current().request_id
    named: Trailers = ((REQUEST_ID, request_id),) if request_id else ()
    return named if load is None else (*named, *load())


def retries_of(error: MFalconError) -> tuple[tuple[str, str], ...]:
    """What tells clients and balancers whether to try again, when and where, and of an append from what length."""
    metadata = []
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        metadata.append((PUSHBACK, str(math.ceil(1_000 * error.retry_after_s))))
    elif isinstance(error, Overloaded) and not error.elsewhere:
        metadata.append((PUSHBACK, NEVER))
    if is_for_others(error):
        metadata.append((RETRY, ELSEWHERE))
    if isinstance(error, HistoryMismatch):
        metadata += ((HISTORY_LEN, str(error.history_len)), (HISTORY_VERSION, error.version_hex))
    return tuple(metadata)


async def message_of(context: Context, message_type: type[Request], limits: MessageLimits, waiting: Waiting) -> Request:
    """The one message of a call. Raises what `Waiting.message` and `parsed` do."""
    raw = await waiting.message(context)
    if raw is None:
        raise DecodeError(f"{message_type.DESCRIPTOR.full_name}: got no message")
    arrivals.current().received(len(raw))
    return parsed(raw, message_type, limits)


def parsed(raw: bytes, message_type: type[Request], limits: MessageLimits) -> Request:
    """The message of these bytes. InvalidInput for more than it may hold, DecodeError for no message, MemoryError."""
    limits.check(raw)
    try:
        return message_type.FromString(raw)
    except DecodeError as error:
        if OUT_OF_MEMORY in str(error):
            raise MemoryError(str(error)) from error
        name = message_type.DESCRIPTOR.full_name
        raise DecodeError(f"{name}: got {len(raw)} bytes that are no such message") from error


def raw_method(
    message_type: type[Request],
    answer: Answer[Request],
    limits: MessageLimits,
    waiting: Waiting,
    status: Mapping[type[MFalconError], grpc.StatusCode] = STATUS,
    admit: Callable[[float | None], None] = lambda _: None,
    load: Callable[[], Trailers] | None = None,
    guard: Guard = open_to_all,
    refusals: Refusals | None = None,
    *,
    writes: bool = False,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Wrap a method of one message and one answer. waiting: where the message is waited for. admit: refuses a call by
    the seconds that its caller grants; its message is not read then, a fifth of what that costs. load: a report that
    goes with every answer, see `server/balancing.py`. guard: refuses who may not call, before all else. refusals: where
    what names the caller's fault waits for its turn. writes: whether a failure says if it may have been done.

    To grpc.aio it is a method that takes a stream: so the wait for its first message is ours, with all that can fail.
    """

    async def method(_: object, context: Context) -> bytes:
        async with statuses(message_type.DESCRIPTOR.full_name, context, status, load, refusals, writes=writes):
            guard(context)
            admit(context.time_remaining())
            message = await message_of(context, message_type, limits, waiting)
            answered = await answer(message, context.time_remaining())
            context.set_trailing_metadata(trailers(load))
            return answered
        raise AssertionError("statuses let an error pass")

    return grpc.stream_unary_rpc_method_handler(method)


def raw_stream_method(
    message_type: type[Request],
    answer: StreamAnswer[Request],
    limits: MessageLimits,
    waiting: Waiting,
    admit: Callable[[float | None], None] = lambda _: None,
    load: Callable[[], Trailers] | None = None,
    guard: Guard = open_to_all,
    refusals: Refusals | None = None,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """The same as `raw_method` for one message and several answers. Of a call whose caller does not read, the status
    waits behind the one message that he does not read, as that of any call would.
    """

    async def method(_: object, context: Context) -> None:
        async def write(answered: bytes) -> None:
            arrivals.current().bytes_out += len(answered)
            await context.write(answered)

        async with statuses(message_type.DESCRIPTOR.full_name, context, load=load, refusals=refusals):
            guard(context)
            admit(context.time_remaining())
            message = await message_of(context, message_type, limits, waiting)
            await answer(message, context.time_remaining(), write)
            context.set_trailing_metadata(trailers(load))

    return grpc.stream_stream_rpc_method_handler(method)
