"""AppendEvents, over both transports."""

from collections.abc import Sequence

from tests.server.bad_input.cases import INVALID, Case
from tests.server.bad_input.making import append_with, over_both, over_grpc, over_http
from tests.server.bad_input.values import BAD_EVENTS, BAD_USER_IDS

CASES: Sequence[Case] = (
    *over_both("AppendEvents", "no events", append_with(), "events: got 0, must be 1 to 10000"),
    *over_both("AppendEvents", "10,001 events", append_with(*[{}] * 10_001), ", must be 1 to 10000 events"),
    *over_both(
        "AppendEvents",
        "expected_len 2 for a history of 1",
        {**append_with({}), "expected_len": 2},
        "expected_len: got 2, the history has 1 events; nothing was written",
        status=409,
        code="FAILED_PRECONDITION",
    ),
    *over_both(
        "AppendEvents",
        "append_id of 65 bytes",
        {**append_with({}), "append_id": "é" * 32 + "x"},
        "append_id: got 65, must be at most 64 bytes of UTF-8 without control characters",
    ),
    *over_both(
        "AppendEvents",
        "append_id with a line break",
        {**append_with({}), "append_id": "a\nb"},
        "append_id: got 'a\\nb', must be at most 64 bytes of UTF-8 without control characters",
    ),
    *over_both(
        "AppendEvents",
        'late_events "drop"',
        {**append_with({}), "late_events": "drop"},
        "late_events: got 'drop', must be reject, clamp, insert or empty",
    ),
    over_grpc(
        "AppendEvents",
        "expected_version of 3 bytes",
        {**append_with({}), "expected_version": "QUJD"},
        INVALID,
        "expected_version: got '3 bytes', must be 16 bytes",
    ),
    over_http(
        "AppendEvents",
        "expected_version that is not 32 hex digits",
        {**append_with({}), "expected_version": "7f"},
        422,
        INVALID,
        "expected_version: got '7f', must be 32 hex digits (0-9, a-f)",
    ),
    *(
        case
        for shown, events, says in BAD_EVENTS
        for case in over_both("AppendEvents", shown, append_with(*events) | {"late_events": "reject"}, says)
    ),
    *(
        case
        for shown, user_id, says in BAD_USER_IDS
        for case in over_both("AppendEvents", shown, append_with({}, user_id=user_id), says)
    ),
)
