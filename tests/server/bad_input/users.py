"""GetHistory, Prefill and DeleteUser, over both transports."""

from collections.abc import Sequence

from tests.server.bad_input.cases import INVALID, Case
from tests.server.bad_input.making import USER, over_both, over_grpc, over_http
from tests.server.bad_input.values import BAD_USER_IDS

CASES: Sequence[Case] = (
    *over_both(
        "GetHistory",
        "a page of 1,001 events",
        {"user_id": USER, "limit": 1_001},
        "limit: got 1001, must be 0 to 1000 events (0 is 1000)",
    ),
    over_grpc(
        "GetHistory",
        "expected_version of another history",
        {"user_id": USER, "expected_version": "AAAAAAAAAAAAAAAAAAAAAA=="},
        "FAILED_PRECONDITION",
        "the history has 1 events and version",
    ),
    over_http(
        "GetHistory",
        "expected_version of another history",
        {"user_id": USER, "expected_version": "0" * 32},
        409,
        "FAILED_PRECONDITION",
        "the history has 1 events and version",
    ),
    over_grpc(
        "GetHistory",
        "expected_version of 3 bytes",
        {"user_id": USER, "expected_version": "AAAA"},
        INVALID,
        "expected_version: got '3 bytes', must be 16 bytes",
    ),
    *(
        over_http("GetHistory", f"{name} {value}", {"user_id": USER, name: value}, 422, INVALID, f"{name}: got")
        for name, value in (
            ("first", "-1"),
            ("first", "18446744073709551616"),
            ("limit", "soon"),
            ("limit", "4294967296"),
            ("with_states", "perhaps"),
        )
    ),
    over_http(
        "GetHistory",
        "expected_version that is not 32 hex digits",
        {"user_id": USER, "expected_version": "7f"},
        422,
        INVALID,
        "expected_version: got '7f', must be 32 hex digits (0-9, a-f)",
    ),
    *(
        case
        for method in ("GetHistory", "Prefill", "DeleteUser")
        for shown, user_id, says in BAD_USER_IDS
        for case in over_both(method, shown, {"user_id": user_id}, says)
    ),
)
