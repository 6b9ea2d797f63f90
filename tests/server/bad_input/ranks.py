"""Rank, over both transports."""

from collections.abc import Sequence

from mfalcon.types import MAX_TIME_MS
from tests.server.bad_input.cases import Case
from tests.server.bad_input.making import EVENT, over_both, rank_with
from tests.server.bad_input.values import BAD_EVENTS, BAD_RERANKS, BAD_USER_IDS

CASES: Sequence[Case] = (
    *over_both("Rank", "no candidates", rank_with(candidates=[]), "candidates: got 0, must be 1 to 16384"),
    *over_both(
        "Rank",
        "16,385 candidates",
        rank_with(candidates=[1] * 16_385),
        ", must be 1 to 16384 candidates",
    ),
    *over_both(
        "Rank", "request_time_ms -1", rank_with(request_time_ms=-1), "request_time_ms: got -1, must be 0 to 253402300"
    ),
    *over_both(
        "Rank",
        "request_time_ms after the year 9999",
        rank_with(request_time_ms=MAX_TIME_MS + 1),
        "request_time_ms: got 253402300800000, must be 0 to",
    ),
    *over_both(
        "Rank",
        "request_time_ms in seconds",
        rank_with(request_time_ms=1_750_000_000),
        "request_time_ms: got 1750000000, must be milliseconds since 1970; this would be a time of our days in seconds",
    ),
    *over_both(
        "Rank",
        "request_time_ms in microseconds",
        rank_with(request_time_ms=1_750_000_000_000_000),
        "must be 0 to 253402300799999 (0 is now); this would be a time of our days in microseconds",
    ),
    *over_both(
        "Rank",
        "request_time_ms of the year 2200",
        rank_with(request_time_ms=7_258_118_400_000),
        "request_time_ms: got 7258118400000, must be at most 300 s after the time of the server's clock",
    ),
    *over_both(
        "Rank",
        "a context name that the model has not",
        rank_with(context={"surfase": 1}),
        "context: got 'surfase', must be one of the model's context features (surface, hour)",
    ),
    *over_both("Rank", "a context value of -1", rank_with(context={"hour": -1}), "context.hour: got -1, must be 0 to"),
    *over_both("Rank", "a context value too large", rank_with(context={"hour": 24}), "got 24, must be 0 to 23"),
    *over_both(
        "Rank",
        "a feature that the model has not",
        rank_with(features={"names": ["prize"], "values": [1, 2]}),
        "features.names[0]: got 'prize', must be one of the model's dense features (price, rank_before)",
    ),
    *over_both(
        "Rank",
        "a counter as a feature",
        rank_with(features={"names": ["price", "item_events"], "values": [1, 2, 3, 4]}),
        "features.names[1]: got 'item_events', must be a feature that callers give",
    ),
    *over_both(
        "Rank",
        "a feature twice",
        rank_with(features={"names": ["price", "price"], "values": [1, 2, 3, 4]}),
        "features.names[1]: got 'price', must be a name that is given once",
    ),
    *over_both(
        "Rank",
        "a number too few",
        rank_with(features={"names": ["price", "rank_before"], "values": [1, 2, 3]}),
        "features.values: got 3, must be 4 numbers (2 candidates, 2 features of each)",
    ),
    *over_both(
        "Rank",
        "numbers without names",
        rank_with(features={"names": [], "values": [1, 2]}),
        "features.values: got 2, must be 0 numbers",
    ),
    *over_both(
        "Rank",
        "257 names of features",
        rank_with(features={"names": ["price"] * 257, "values": []}),
        "features.names: got",
    ),
    *over_both(
        "Rank",
        "a model that is not served",
        rank_with(model="other"),
        "model: got 'other', must be 'small' or empty",
        status=404,
        code="NOT_FOUND",
    ),
    *(
        case
        for shown, wish, says in BAD_RERANKS
        for case in over_both("Rank", shown, rank_with(rerank={"method": "dpp", "strength": 0.5} | wish), says)
    ),
    *over_both(
        "Rank",
        "1,025 recent events",
        rank_with(recent_events=[EVENT] * 1_025),
        ", must be 0 to 1024 events",
    ),
    *(
        case
        for shown, events, says in BAD_EVENTS
        for case in over_both("Rank", shown, rank_with(recent_events=[EVENT | event for event in events]), says)
    ),
    *(
        case
        for shown, user_id, says in BAD_USER_IDS
        for case in over_both("Rank", shown, rank_with(user_id=user_id), says)
    ),
)
