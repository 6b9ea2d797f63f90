"""Any bytes on a connection of HTTP: heads, headers, chunks, pipelined requests.

They come in parts, which 0xff 0xff ends.
"""

import http
import re

import orjson

from loadtest.faults.internals import internals
from tests.fuzz.loop import run
from tests.fuzz.served import Defect, complaints
from tests.fuzz.served import http as talk

STATUSES = frozenset({200, 307, 400, 404, 405, 408, 409, 413, 422, 429, 431, 501, 503, 504})
HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) ([^\r\n]*)\r\n((?:[^\r\n]+\r\n)*)\r\n")
_JSON = b"content-type: application/json\r\n"
_RANK = b'{"user_id":"ann","candidates":[1,2,3]}'


def seeds() -> list[bytes]:
    """Requests of each route, some at once, some in chunks and in parts."""
    rank = b"POST /v1/rank HTTP/1.1\r\nhost: a\r\n" + _JSON
    get = b"GET /v1/users/ann%2Fb/history?first=0&limit=2&expected_version="
    return [
        rank + b"content-length: 38\r\n\r\n" + _RANK,
        rank + b"transfer-encoding: chunked\r\n\r\n26\r\n" + _RANK + b"\r\n0\r\n\r\n",
        rank + b"x-request-timeout-ms: 100\r\ncontent-length: 38\r\n\r\n" + _RANK[:9] + b"\xff\xff" + _RANK[9:],
        get + b"0" * 32 + b" HTTP/1.1\r\nhost: a\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7-01\r\n\r\n",
        b"GET http://a:1/v1/models?x=1 HTTP/1.1\r\nhost: a\r\nmfalcon-rank-key: 00\r\n\r\n",
        b"DELETE /v1/users/%ff HTTP/1.1\r\nhost: a\r\n\r\nHEAD /livez HTTP/1.0\r\n\r\n",
        b"POST /v1/users/a/prefill?model=fake HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nexpect: 100-continue\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        b"GET /openapi.json HTTP/1.1\r\nhost: a\r\n\r\nGET /docs HTTP/1.1\r\nhost: a\r\n\r\n",
    ]


def target(data: bytes) -> None:
    """Every answer has a documented status; one that refuses says why, in JSON, and nothing of us."""
    check(run(talk(data.split(b"\xff\xff"))), data)


def check(written: bytes, data: bytes) -> None:
    """Raise Defect for what no caller may get."""
    complaints().raise_any()
    while written:
        head = HEAD.match(written)
        if head is None:
            raise Defect(f"no answer begins like this: {written[:80]!r}")
        status = int(head[1])
        if status == 100:
            written = written[head.end() :]
            continue
        if status not in STATUSES or head[2].decode() != http.HTTPStatus(status).phrase:
            raise Defect(f"status {status} {head[2]!r}")
        length = re.search(rb"content-length: (\d+)", head[3], re.IGNORECASE)
        body = written[head.end() : head.end() + int(length[1])] if length else written[head.end() :]
        if status >= 400 and body.startswith(b"{"):
            told = orjson.loads(body)
            if "status" not in told and not told["error"]["message"]:
                raise Defect(f"{status} without a reason")
            if said := internals(str(told), data):
                raise Defect(f"{said!r} in {body!r}")
        # An answer to HEAD names the length of a body that it has not.
        written = (
            written[head.end() :]
            if written[head.end() :].startswith(b"HTTP/1.1 ")
            else written[head.end() + len(body) :]
        )
