"""Every request has a name: the caller's where it is sane, told in every answer and on every line of the log."""

import asyncio
import io
import logging
import re
from collections.abc import Iterator

import orjson
import pytest

from mfalcon.errors import DeadlineExceeded
from proto import ranking_pb2
from server.logs import JsonFormatter, TextFormatter, belongs
from tests.server.harness import Clients, Running, serving

RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1])
RANK_JSON = {"user_id": "ann", "candidates": [1]}
GIVEN = "page-7:rank/1.2~a=b@c+d_E"
OURS = re.compile(r"[0-9a-f]{32}")
INSANE = ["", "a b", "x" * 129, "line\u2028", "{}", 'a"b', "ÿ"]

Calls = list[tuple[str, ranking_pb2.RankRequest]]


async def by_grpc(clients: Clients, message: ranking_pb2.RankRequest, given: str | None) -> tuple[str, str]:
    """The code of a call, and its name in the trailers."""
    call = clients.stub.Rank(message, metadata=() if given is None else (("x-request-id", given),))
    code = await call.code()
    named = [value for name, value in await call.trailing_metadata() if name == "x-request-id"]
    assert len(named) == 1
    return code.name, str(named[0])


async def by_http(clients: Clients, given: str | None, method: str, path: str, **body: object) -> tuple[int, str]:
    """The status of a request, and its name in the headers."""
    headers = [] if given is None else [(b"x-request-id", given.encode("utf-8"))]
    answer = await clients.http.request(method, path, headers=headers, json=body.get("json"))
    assert len(answer.headers.get_list("x-request-id")) == 1
    return answer.status_code, answer.headers["x-request-id"]


@pytest.mark.parametrize("frontends", [0, 1])
async def test_answers_and_refusals_name_the_request(frontends: int) -> None:
    async with serving(frontends=frontends) as running:
        nobody = ranking_pb2.RankRequest(candidates=[1])
        assert await by_grpc(running, RANK, GIVEN) == ("OK", GIVEN)
        assert await by_grpc(running, nobody, GIVEN) == ("INVALID_ARGUMENT", GIVEN)
        assert await by_http(running, GIVEN, "POST", "/v1/rank", json=RANK_JSON) == (200, GIVEN)
        assert await by_http(running, GIVEN, "POST", "/v1/rank", json={}) == (422, GIVEN)
        assert await by_http(running, GIVEN, "GET", "/nowhere") == (404, GIVEN)
        assert await by_http(running, GIVEN, "DELETE", "/v1/users/ann") == (200, GIVEN)
        running.engine.fault = DeadlineExceeded("late")
        assert await by_grpc(running, RANK, GIVEN) == ("DEADLINE_EXCEEDED", GIVEN)
        assert await by_http(running, GIVEN, "POST", "/v1/rank", json=RANK_JSON) == (504, GIVEN)


async def test_a_name_is_made_where_none_is_fit_for_a_log(running: Running) -> None:
    named = [(await by_grpc(running, RANK, None))[1]]
    named += [(await by_grpc(running, RANK, insane))[1] for insane in INSANE if insane.isascii()]
    named += [(await by_http(running, insane, "POST", "/v1/rank", json=RANK_JSON))[1] for insane in (None, *INSANE)]
    assert all(map(OURS.fullmatch, named)) and len(set(named)) == len(named)


async def test_what_no_application_hears_of_has_a_name_too(running: Running) -> None:
    host, _, port = running.addresses.http.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"mischief\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 400") and re.search(rb"x-request-id: [0-9a-f]{32}\r\n", head)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The log of this process, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(belongs)
    logging.getLogger("server").addHandler(handler)
    yield stream
    logging.getLogger("server").removeHandler(handler)


@pytest.mark.parametrize("frontends", [0, 1])
async def test_a_line_of_the_log_names_its_request(frontends: int, lines: io.StringIO) -> None:
    async with serving(frontends=frontends) as running:
        running.engine.fault = ZeroDivisionError("a defect")
        await asyncio.gather(*(by_grpc(running, RANK, f"one-{number}") for number in range(5)))
    failures = [orjson.loads(line) for line in lines.getvalue().splitlines()]
    failures = [failure for failure in failures if "error" in failure]
    assert {failure["request_id"] for failure in failures} == {f"one-{number}" for number in range(5)}


def test_text_has_the_name_at_the_end_of_the_first_line() -> None:
    record = logging.LogRecord("server.app", logging.ERROR, __file__, 1, "it %s", ("failed",), None)
    record.request_id = "page-7"
    assert belongs(record)
    assert TextFormatter().format(record).endswith("ERROR server.app: it failed request_id=page-7")


def test_a_line_of_no_request_names_none() -> None:
    record = logging.LogRecord("server.app", logging.INFO, __file__, 1, "ready", (), None)
    assert belongs(record)
    assert orjson.loads(JsonFormatter().format(record)).keys() == {"time", "level", "logger", "message"}
