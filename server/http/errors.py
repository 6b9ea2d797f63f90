"""Errors as answers over HTTP: the status of each, and its body."""

import logging
from collections.abc import Mapping
from typing import Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

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
from server.balancing import ELSEWHERE, RETRY, is_for_others
from server.explain import refusal
from server.http import codec
from server.http.answering import json_response
from server.http.reading import CLIENT_CLOSED_REQUEST
from server.logs import SELDOM
from server.oip.http_replies import inference_error, is_inference
from server.outcome import NOTHING_WRITTEN, UNKNOWN, Outcome, outcome_of

logger = logging.getLogger(__name__)

STATUS: Mapping[type[MFalconError], tuple[int, str]] = {
    InvalidInput: (422, "INVALID_ARGUMENT"),
    Unauthenticated: (401, "UNAUTHENTICATED"),
    PermissionDenied: (403, "PERMISSION_DENIED"),
    UnknownModel: (404, "NOT_FOUND"),
    HistoryMismatch: (409, "FAILED_PRECONDITION"),
    Overloaded: (429, "RESOURCE_EXHAUSTED"),
    Superseded: (409, "ABORTED"),
    DeadlineExceeded: (504, "DEADLINE_EXCEEDED"),
    NotReady: (503, "UNAVAILABLE"),
    ShuttingDown: (503, "UNAVAILABLE"),
    StorageUnavailable: (503, "UNAVAILABLE"),
    DamagedLog: (500, "DATA_LOSS"),
    TooFewMembers: (503, "UNAVAILABLE"),
    EngineFailure: (500, "INTERNAL"),
}
INTERNAL: Final = (500, "INTERNAL")
FRAMEWORK_CODE: Mapping[int, str] = {
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    413: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
}
"""Codes of what Starlette and `BodyLimit` refuse before a handler sees it."""
REFUSALS: Mapping[int, str] = dict((*STATUS.values(), (413, FRAMEWORK_CODE[413])))
CHALLENGE = "www-authenticate"
"""What proves who a caller is (RFC 6750); a 401 must say so."""


def is_write(request: Request) -> bool:
    """Whether it is an append or a deletion, wherever it failed."""
    return codec.is_write(request.method, request.url.path)


def code_of(outcome: object) -> str:
    """The name of the status of an error, or of what is none."""
    return STATUS.get(type(outcome), INTERNAL)[1] if isinstance(outcome, MFalconError) else "OK"


def error_line(error: Exception) -> tuple[int, bytes]:
    """The status of an error, and the last line of a stream that it ends."""
    if not isinstance(error, MFalconError):
        return 500, codec.error_reply("INTERNAL", "the server failed on this request; its log has the cause", None)
    field = error.field if isinstance(error, InvalidInput) else None
    return STATUS.get(type(error), INTERNAL)[0], codec.error_reply(code_of(error), str(error), field)


def error_body(request: Request, code: str, message: str, field: str | None, outcome: Outcome | None) -> bytes:
    """An error as the path of its request has it."""
    if is_inference(request.url.path):
        return inference_error(message)
    return codec.error_reply(code, message, field, outcome)


async def on_error(request: Request, error: Exception) -> Response:
    """An error that is an answer."""
    assert isinstance(error, MFalconError)
    status, code = STATUS.get(type(error), INTERNAL)
    field = error.field if isinstance(error, InvalidInput) else None
    retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
    told = error_body(request, code, str(error), field, outcome_of(error) if is_write(request) else None)
    response = json_response(told, status, retry_after_s)
    if isinstance(error, Unauthenticated):
        response.headers[CHALLENGE] = 'Bearer error="invalid_token"' if error.had_token else "Bearer"
    if is_for_others(error):
        response.headers[RETRY] = ELSEWHERE
    return response


async def on_invalid_request(request: Request, error: Exception) -> Response:
    """A header, path or missing body that is not of the declared type; the first complaint is the answer."""
    assert isinstance(error, RequestValidationError)
    details = error.errors()[0]
    return await on_error(request, refusal(details, tuple(details["loc"][1:])))


async def on_framework_refusal(request: Request, error: Exception) -> Response:
    """An unknown route, a wrong method, a body that is too large."""
    assert isinstance(error, HTTPException)
    code = FRAMEWORK_CODE.get(error.status_code, "INVALID_ARGUMENT")
    outcome: Outcome | None = None
    if is_write(request):
        outcome = UNKNOWN if error.status_code == CLIENT_CLOSED_REQUEST else NOTHING_WRITTEN
    response = json_response(error_body(request, code, str(error.detail), None, outcome), error.status_code)
    response.headers.update(error.headers or {})  # of a wrong method: which are right
    return response


async def on_memory_error(request: Request, error: Exception) -> Response:
    """No memory for this request; others may be smaller, or come later."""
    logger.error("out of memory while answering a request", extra=SELDOM)
    refusal_of_memory = Overloaded("the server is short of memory; ask again later", elsewhere=False)
    refusal_of_memory.may_be_done = True  # it may have come at any time
    return await on_error(request, refusal_of_memory)


async def on_failure(request: Request, error: Exception) -> Response:
    """A defect of ours; Starlette raises it again, so that uvicorn logs the traceback."""
    text = "the server failed on this request; its log has the cause"
    return json_response(error_body(request, "INTERNAL", text, None, UNKNOWN if is_write(request) else None), 500)
