"""What only JSON and HTTP can say."""

from collections.abc import Sequence

from tests.server.bad_input.cases import INVALID, JSON, TOO_LARGE, Case, HttpCase
from tests.server.bad_input.making import event_json, good_rank_json, rank_json

CASES: Sequence[Case] = (
    rank_json("not JSON", b"{", "body: got"),
    rank_json("an empty body", b"", "body: got None, must be given"),
    rank_json("not UTF-8", good_rank_json(b"ann", b"\xff"), "body: got"),
    rank_json("a lone surrogate", good_rank_json(b"ann", b"\\ud800"), "body: got"),
    rank_json("JSON 2,000 lists deep", b"[" * 2_000, "body: got"),
    rank_json("a list", b"[1]", "body: got 'a list', must be a JSON object"),
    rank_json("null", b"null", "body: got None, must be a JSON object"),
    rank_json("no user_id", b'{"candidates": [1]}', "user_id: got None, must be given"),
    rank_json(
        "a reranking without a strength",
        b'{"user_id": "ann", "candidates": [1], "rerank": {"method": "dpp"}}',
        "rerank.strength: got None, must be given",
    ),
    rank_json(
        "a tail weight in words",
        b'{"user_id": "ann", "candidates": [1], "rerank": {"method": "dpp", "strength": 0.5, "tail_weight": "1"}}',
        "rerank.tail_weight: got '1', must be a valid number",
    ),
    rank_json("no candidates at all", b'{"user_id": "ann"}', "candidates: got 0, must be 1 to 16384 candidates"),
    rank_json("an unknown field", good_rank_json(b"top_k", b"topk"), "topk: got 0, must be absent"),
    rank_json("user_id as a number", good_rank_json(b'"ann"', b"7"), "user_id: got 7, must be a valid string"),
    *(
        rank_json(f"candidate {value.decode()}", good_rank_json(b"[1, 2]", b"[1, %s]" % value), says)
        for value, says in (
            (b'""', "candidates[1]: got '', must be 1 to 256 bytes of UTF-8 without control characters"),
            (b'"a\\u0000"', "candidates[1]: got 'a\\x00', must be 1 to 256 bytes of UTF-8 without control characters"),
            (b"true", "candidates[1]: got True, must be a valid integer"),
            (b"1.0", "candidates[1]: got 1.0, must be a valid integer"),
            (b"null", "candidates[1]: got None, must be a valid integer"),
            (b"[1]", "candidates[1]: got 'a list', must be a valid integer"),
            (b"9223372036854775808", "must be less than or equal to 9223372036854775807"),
            (b"-9223372036854775809", "must be a valid integer"),
            (b"1e30", "must be a valid integer"),
        )
    ),
    rank_json("candidates as a text", good_rank_json(b"[1, 2]", b'"12"'), "candidates: got '12', must be a valid list"),
    rank_json(
        "top_k -1", good_rank_json(b'"top_k": 0', b'"top_k": -1'), "top_k: got -1, must be greater than or equal"
    ),
    rank_json("top_k 2^32", good_rank_json(b'"top_k": 0', b'"top_k": 4294967296'), "top_k: got 4294967296, must be"),
    rank_json("context as a list", good_rank_json(b"{}", b"[]"), "context: got 'a list', must be a valid dictionary"),
    rank_json("context value 1.5", good_rank_json(b"{}", b'{"hour": 1.5}'), "context.hour: got 1.5, must be a valid"),
    rank_json("features as a list", good_rank_json(b"{}", b'{}, "features": [1]'), "features: got"),
    rank_json(
        "a feature of 1e39",
        good_rank_json(b"{}", b'{}, "features": {"names": ["price"], "values": [1, 1e39]}'),
        "features.values[1]: got 1e+39, must be less than",
    ),
    rank_json(
        "an unknown field of features",
        good_rank_json(b"{}", b'{}, "features": {"names": [], "values": [], "columns": []}'),
        "features.columns",
    ),
    rank_json(
        "262,145 numbers of features",
        good_rank_json(b"{}", b'{}, "features": {"names": ["price"], "values": [' + b"0," * 262_144 + b"0]}"),
        "features.values: got 262145, must be at most 262144 numbers over HTTP",
    ),
    rank_json("an event value of NaN", event_json(b"NaN"), "body: got"),
    rank_json("an event value of 1e400", event_json(b"1e400"), "body: got"),
    rank_json("an event value of 1e39", event_json(b"1e39"), "recent_events[0].value: got 1e+39, must be less than"),
    rank_json(
        "an event value of true", event_json(b"true"), "recent_events[0].value: got True, must be a valid number"
    ),
    rank_json("an event without time_ms", good_rank_json(b"[]", b'[{"item_id": 1}]'), "recent_events[0].time_ms: got"),
    HttpCase(
        "POST",
        "/v1/users/ann/events",
        "expected_len -1",
        b'{"events": [{"item_id": 1, "time_ms": 1000001}], "expected_len": -1}',
        422,
        INVALID,
        "expected_len: got -1, must be greater than or equal to 0",
    ),
    HttpCase(
        "POST",
        "/v1/users/%FF/prefill",
        "a user_id that is not UTF-8",
        b"",
        422,
        INVALID,
        "must be UTF-8, percent-encoded",
    ),
    HttpCase(
        "POST",
        "/v1/rank",
        "content-type text/plain",
        good_rank_json(b"[1, 2]", b"[1]"),
        422,
        INVALID,
        "body: got 'bytes that are not declared as JSON', must be a JSON object with content-type: application/json",
        headers=(("content-type", "text/plain"),),
    ),
    *(
        HttpCase(
            "POST",
            "/v1/rank",
            f"x-request-timeout-ms: {shown or value}",
            good_rank_json(b"[1, 2]", b"[1]"),
            422,
            INVALID,
            f"x-request-timeout-ms: got '{value[:70]}",
            headers=(*JSON.items(), ("x-request-timeout-ms", value)),
        )
        for value, shown in (
            ("0", ""),
            ("-5", ""),
            ("soon", ""),
            ("3600001", ""),
            ("9" * 321, "a number of 321 digits"),
            ("9" * 5_000, "a number of 5,000 digits"),
        )
    ),
    HttpCase("POST", "/v1/rank", "more than 4 MiB", b" " * (4 * 2**20 + 1), 413, TOO_LARGE, "must be at most 4194304"),
    HttpCase(
        "POST",
        "/v1/rank",
        "more than 4 MiB, chunked",
        b" " * (4 * 2**20 + 1),
        413,
        TOO_LARGE,
        "must be at most 4194304",
        chunked=True,
    ),
    HttpCase("POST", "/v1/score", "a path that there is not", b"", 404, "NOT_FOUND", "Not Found"),
    HttpCase("GET", "/v1/rank", "a verb that there is not", b"", 405, "UNIMPLEMENTED", "Method Not Allowed"),
)
