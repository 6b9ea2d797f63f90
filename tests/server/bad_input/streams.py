"""RankStream, over both transports: what is refused before the first part has a status of its own."""

from collections.abc import Sequence

from tests.server.bad_input.cases import INVALID, Case, GrpcCase, HttpCase
from tests.server.bad_input.making import EVENT, over_both, rank_with
from tests.server.bad_input.values import BAD_EVENTS, BAD_USER_IDS

CASES: Sequence[Case] = (
    *over_both("RankStream", "no candidates", rank_with(candidates=[]), "candidates: got 0, must be 1 to 16384"),
    *over_both("RankStream", "16,385 candidates", rank_with(candidates=[1] * 16_385), "must be 1 to 16384 candidates"),
    *over_both(
        "RankStream",
        'return "top"',
        rank_with(top_k=1, **{"return": "top"}),
        "return: got 'top', must be both, scores or empty in a stream",
    ),
    *over_both(
        "RankStream",
        "a wish for what no model here proposes",
        {"user_id": "ann", "retrieve": {"conditions": ["like"], "k": 5}},
        "must be",
    ),
    *over_both(
        "RankStream",
        "a model that is not served",
        rank_with(model="other"),
        "model: got 'other', must be 'small' or empty",
        status=404,
        code="NOT_FOUND",
    ),
    *(
        case
        for shown, events, says in BAD_EVENTS[-1:]
        for case in over_both("RankStream", shown, rank_with(recent_events=[EVENT | event for event in events]), says)
    ),
    *(
        case
        for shown, user_id, says in BAD_USER_IDS[:1]
        for case in over_both("RankStream", shown, rank_with(user_id=user_id), says)
    ),
    GrpcCase(
        "RankStream", "bytes that are no protobuf", b"\xff\xff\xff", INVALID, "mfalcon.v1.RankRequest: got 3 bytes"
    ),
    GrpcCase("RankStream", "an empty message", b"", INVALID, "user_id: got ''"),
    HttpCase("POST", "/v1/rank/stream", "not JSON", b"{", 422, INVALID, "body: got"),
    HttpCase("GET", "/v1/rank/stream", "a verb that there is not", b"", 405, "UNIMPLEMENTED", "Method Not Allowed"),
)
