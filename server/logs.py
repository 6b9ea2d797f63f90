"""What the log looks like: a line a record on standard error, with time and level, for people or for machines."""

import atexit
import logging
import os
import sys
import time
from typing import Literal, TextIO

import orjson
from opentelemetry import trace

from mfalcon.scope import request_id

LogFormat = Literal["text", "json"]
SELDOM = {"seldom": True}
"""As `extra` of a log call: what many requests may cause is written once in a while, not for each."""
SELDOM_SECONDS = 10.0
OURS = ("mfalcon", "server")
"""Loggers that say what is well too; of others' only warnings are shown."""
OF_A_REQUEST = ("request_id", "trace_id", "span_id")


def belongs(record: logging.LogRecord) -> bool:
    """Note, of every record, the request that it belongs to and the span, if that is traced. It may say so itself."""
    if not hasattr(record, "request_id"):
        record.request_id = request_id()
    context = trace.get_current_span().get_span_context()
    if context.trace_flags.sampled:
        record.trace_id, record.span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return True


class TextFormatter(logging.Formatter):
    """2026-01-31T12:00:00.000Z WARNING server.app: text request_id=..."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line before a traceback."""
        line = super().formatMessage(record)
        return "".join((line, *(f" {name}={value}" for name, value in belonging(record))))


def belonging(record: logging.LogRecord) -> list[tuple[str, str]]:
    """What a record says of its request: request_id, trace_id and span_id, as far as there are such."""
    given = [(name, getattr(record, name, "")) for name in OF_A_REQUEST]
    return [(name, str(value)) for name, value in given if value]


class JsonFormatter(TextFormatter):
    """An object a line: time, level, logger, message; request_id of a line that belongs to a request, trace_id and
    span_id where that is traced; error with the traceback where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        content = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **dict(belonging(record)),
        }
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        # A message may quote a user id that is no text; a line with a replacement is better than none.
        return orjson.dumps({name: text.encode(errors="replace").decode() for name, text in content.items()}).decode()


class Seldom(logging.Filter):
    """Drops a record marked `SELDOM` where its like was written less than `SELDOM_SECONDS` ago."""

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write it. Records are alike whose text is, before values are put in."""
        if not getattr(record, "seldom", False):
            return True
        like = (record.name, str(record.msg))
        written = self._written.get(like)
        if written is not None and record.created - written < SELDOM_SECONDS:
            return False
        self._written[like] = record.created
        return True


def is_news(record: logging.LogRecord) -> bool:
    """False for what gRPC says, with a traceback, of a caller that left in the moment of its answer."""
    error = record.exc_info[1] if record.exc_info else None
    return record.name != "grpc._cython.cygrpc" or type(error).__name__ != "ExecuteBatchError"


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to standard error. A line that cannot be written (a full disk, nobody who reads) is lost, and no more."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Python's own way is to print a traceback to where nothing can be written."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def flush_or_forget(stream: TextIO | None) -> None:
    """Write out what is buffered. If that cannot be written it is forgotten, as is what follows: Python would try again
    when it ends, and end with exit code 120.
    """
    if stream is None:  # closed from the start
        return
    try:
        stream.flush()
    except OSError:
        with open(os.devnull, "w") as devnull:
            os.dup2(devnull.fileno(), stream.fileno())


def flush_output() -> None:
    """Write out what is buffered, at the end."""
    flush_or_forget(sys.stdout)
    flush_or_forget(sys.stderr)


def log_to_stderr(log_format: LogFormat) -> None:
    """Have this process log to standard error, Python's own warnings too."""
    handler = StderrHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(Seldom())
    handler.addFilter(is_news)
    handler.addFilter(belongs)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    # What a caller sends as tracestate is no news either, and could be a line a request.
    logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    atexit.register(flush_output)
