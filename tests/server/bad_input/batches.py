"""RankBatch and AppendBatch: a batch that is none is refused whole, what is wrong with one part is told of it alone."""

from collections.abc import Sequence

from tests.server.bad_input.cases import INVALID, Case, Fields, GrpcCase, HttpCase
from tests.server.bad_input.making import USER, append_with, over_both, over_grpc, rank_with
from tests.server.bad_input.values import BAD_EVENTS, BAD_USER_IDS


def ranks(*requests: Fields) -> Fields:
    """A batch of these."""
    return {"requests": list(requests)}


def appends(*each: Fields) -> Fields:
    """A batch of these."""
    return {"appends": list(each)}


def part_of_both(method: str, shown: str, fields: Fields, says: str, code: str = INVALID) -> Sequence[Case]:
    """What is wrong with the first part of a batch, by both transports."""
    return over_both(method, shown, fields, says, status=200, code=code)


CASES: Sequence[Case] = (
    *over_both("RankBatch", "no ranks", ranks(), "requests: got 0, must be 1 to 256 ranks"),
    *over_both("RankBatch", "257 ranks", ranks(*[rank_with()] * 257), ", must be 1 to 256 ranks"),
    *over_both(
        "RankBatch",
        "65,540 candidates in all",
        ranks(*[rank_with(candidates=[1] * 13_108)] * 5),
        "candidates: got",
    ),
    *part_of_both("RankBatch", "a rank without candidates", ranks(rank_with(candidates=[])), "candidates: got 0"),
    *part_of_both(
        "RankBatch",
        "a model that is not served",
        ranks(rank_with(model="other")),
        "model: got 'other', must be 'small' or empty",
        code="NOT_FOUND",
    ),
    *(
        case
        for shown, user_id, says in BAD_USER_IDS[:2]
        for case in part_of_both("RankBatch", shown, ranks(rank_with(user_id=user_id)), says)
    ),
    GrpcCase("RankBatch", "bytes that are no protobuf", b"\xff", INVALID, "mfalcon.v1.RankBatchRequest: got 1 bytes"),
    GrpcCase("RankBatch", "4 MiB of empty ranks", b"\x0a\0" * 2**21, INVALID, "requests: got more than 256"),
    HttpCase("POST", "/v1/rank/batch", "ranks as an object", b'{"requests": {}}', 422, INVALID, "requests: got"),
    HttpCase("POST", "/v1/rank/batch", "a rank that is a number", b'{"requests": [7]}', 200, INVALID, "body: got 7"),
    HttpCase(
        "POST",
        "/v1/rank/batch",
        "an unknown field of a rank",
        b'{"requests": [{"user_id": "ann", "candidates": [1], "topk": 1}]}',
        200,
        INVALID,
        "topk: got 1, must be absent",
    ),
    *over_both("AppendBatch", "no appends", appends(), "appends: got 0, must be 1 to 1000 appends"),
    *over_both(
        "AppendBatch",
        "1,001 appends",
        appends(*(append_with({}, user_id=f"user {number}") for number in range(1_001))),
        ", must be 1 to 1000 appends",
    ),
    *over_both(
        "AppendBatch",
        "10,001 events in all",
        appends(append_with(*[{}] * 5_000), append_with(*[{}] * 5_001, user_id="bob")),
        "events: got",
    ),
    *over_both(
        "AppendBatch",
        "two appends of one user",
        appends(append_with({}), append_with({})),
        f"user_id: got '{USER}', must be a user that no other append of the batch names",
    ),
    *part_of_both("AppendBatch", "an append without events", appends(append_with()), "events: got 0"),
    *part_of_both(
        "AppendBatch",
        "expected_len 2 for a history of 1",
        appends({**append_with({}), "expected_len": 2}),
        "expected_len: got 2, the history has 1 events; nothing was written",
        code="FAILED_PRECONDITION",
    ),
    *(
        case
        for shown, events, says in BAD_EVENTS[:2]
        for case in part_of_both("AppendBatch", shown, appends(append_with(*events)), says)
    ),
    *(
        case
        for shown, user_id, says in BAD_USER_IDS[:2]
        for case in part_of_both("AppendBatch", shown, appends(append_with({}, user_id=user_id)), says)
    ),
    over_grpc(
        "AppendBatch",
        "an event with value NaN",
        appends(append_with({"value": "NaN"})),
        INVALID,
        "events[0].value: got nan, must be a finite 32-bit float",
    ),
    GrpcCase("AppendBatch", "4 MiB of empty appends", b"\x0a\0" * 2**21, INVALID, "appends: got more than 1000"),
    HttpCase("POST", "/v1/events", "an append that is a number", b'{"appends": [7]}', 200, INVALID, "body: got 7"),
)
