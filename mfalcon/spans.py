"""Spans of a request that is traced, and nothing for one that is not: whether it is was decided at the server's edge.

An attribute, a status or an event never holds a user id or the text of an error, which may quote what a caller sent.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode

_tracer = trace.get_tracer("mfalcon")

Value: TypeAlias = str | int | float | bool
Event: TypeAlias = tuple[float, str, Mapping[str, Value]]
"""When (a reading of `time.monotonic()`), what, and more of it."""


def is_traced() -> bool:
    """Whether the request of this task is."""
    return trace.get_current_span().get_span_context().trace_flags.sampled


def exemplar(span: Span | None = None) -> dict[str, str] | None:
    """What a histogram shows of a request that is traced, this task's or that of a span: its trace. None of others."""
    context = (trace.get_current_span() if span is None else span).get_span_context()
    return {"trace_id": f"{context.trace_id:032x}"} if context.trace_flags.sampled else None


def at(seconds: float) -> int:
    """A reading of `time.monotonic()`, of any thread, as spans have times: nanoseconds since 1970."""
    return time.time_ns() - round(1e9 * (time.monotonic() - seconds))


def stage(
    name: str,
    began: float,
    ended: float,
    attributes: Mapping[str, Value] | None = None,
    events: Sequence[Event] = (),
    parent: Span | None = None,
) -> None:
    """Tell of what is over, by readings of `time.monotonic()`, as a part of the present span or of `parent`."""
    context = None if parent is None else trace.set_span_in_context(parent)
    span = _tracer.start_span(name, context, start_time=at(began), attributes=attributes)
    for when, what, more in events:
        span.add_event(what, more, timestamp=at(when))
    span.end(at(max(began, ended)))


@contextmanager
def within(name: str, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
    """The span of what is done inside, which fails with the class of its error. Of a request that is not traced there
    is none, and what is said to it is lost.
    """
    if not is_traced():
        yield INVALID_SPAN
        return
    with _tracer.start_as_current_span(name, kind=kind, record_exception=False, set_status_on_exception=False) as span:
        try:
            yield span
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR))
            raise
