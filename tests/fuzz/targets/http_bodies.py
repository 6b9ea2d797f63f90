"""Any bytes as the body of a route, with small limits. The first byte is the route, the second the content type."""

from tests.fuzz.loop import run
from tests.fuzz.served import http as talk
from tests.fuzz.targets.http_wire import check

ROUTES = (b"/v1/rank", b"/v1/users/ann/events", b"/v1/users/ann/prefill", b"/v1/users/ann")
TYPES = (b"application/json", b"text/plain", b"application/json; charset=latin-1", b"")


def seeds() -> list[bytes]:
    """Bodies with every field."""
    rank = (
        b'{"user_id":"ann","candidates":[1,2],"top_k":2,"request_time_ms":5,"context":{"hour":3},"model":"fake",'
        b'"recent_events":[{"item_id":1,"actions":1,"value":1.0,"time_ms":4}],"allow_partial":true,'
        b'"rerank":{"method":"mmr","strength":0.5,"depth":3,"tail_weight":0.1},'
        b'"features":{"names":["price"],"values":[1,2.5]}}'
    )
    append = (
        b'{"events":[{"item_id":50,"actions":16,"value":5.0,"time_ms":893286700000}],"expected_len":0,'
        b'"expected_version":"00000000000000000000000000000000","append_id":"once","late_events":"insert"}'
    )
    return [b"\0\0" + rank, b"\1\0" + append, b"\2\0{}", b"\3\0null", b"\0\1" + rank, b"\0\0[" * 4]


def target(data: bytes) -> None:
    """The answer is a result or a refusal."""
    if len(data) < 2:
        return
    route, kind, body = ROUTES[data[0] % len(ROUTES)], TYPES[data[1] % len(TYPES)], data[2:]
    method = b"DELETE" if route.endswith(b"/ann") else b"POST"
    head = b"%s %s HTTP/1.1\r\nhost: a\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (
        method,
        route,
        kind,
        len(body),
    )
    check(run(talk([head + body])), data)
