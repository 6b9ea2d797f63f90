"""Values that are bad wherever they stand, and what is said of each."""

from collections.abc import Sequence

from mfalcon.types import MAX_TIME_MS
from tests.server.bad_input.cases import Fields
from tests.server.bad_input.making import LAST_TIME_MS

LONG_ID = "x" * 257
MAX_SAID = f"must be 1 to {MAX_TIME_MS}"

BAD_USER_IDS = (
    ("user_id empty", "", "user_id: got '', must be 1 to 256 bytes"),
    ("user_id of 257 bytes", LONG_ID, "user_id: got 257, must be 1 to 256 bytes"),
    ("user_id of 129 two-byte characters", "é" * 129, "user_id: got 258, must be 1 to 256 bytes"),
    ("user_id with NUL", "a\0b", "must be free of control characters"),
    ("user_id with a line break", "a\nb", "must be free of control characters"),
    ("user_id with a line break at its end", "ann\n", "must be free of control characters"),
)

BAD_EVENTS: Sequence[tuple[str, Sequence[Fields], str]] = (
    ("an event with time_ms 0", [{"time_ms": 0}], "[0].time_ms: got 0, " + MAX_SAID),
    ("an event with time_ms -1", [{"time_ms": -1}], "[0].time_ms: got -1, " + MAX_SAID),
    ("an event after the year 9999", [{"time_ms": MAX_TIME_MS + 1}], "[0].time_ms: got 253402300800000, " + MAX_SAID),
    (
        "events out of time order",
        [{}, {}, {"time_ms": LAST_TIME_MS}],
        "[2].time_ms: got 1000000, must be at least 1000001",
    ),
    (
        "an event whose time is in seconds",
        [{"time_ms": 1_750_000_000}],
        "[0].time_ms: got 1750000000, must be milliseconds since 1970; this would be a time of our days in seconds",
    ),
    (
        "an event whose time is in microseconds",
        [{"time_ms": 1_750_000_000_000_000}],
        f"[0].time_ms: got 1750000000000000, {MAX_SAID}; this would be a time of our days in microseconds",
    ),
    (
        "an event whose time is in nanoseconds",
        [{}, {"time_ms": 1_750_000_000_000_000_000}],
        f"[1].time_ms: got 1750000000000000000, {MAX_SAID}; this would be a time of our days in nanoseconds",
    ),
    (
        "an event of the year 2200",
        [{}, {"time_ms": 7_258_118_400_000}],
        "[1].time_ms: got 7258118400000, must be at most 300 s after the time of the server's clock (max_clock_skew_s)",
    ),
    (
        "an action that the model has not",
        [{}, {"actions": 8}],
        "[1].actions: got 8, must be 0 to 7 (a bitmask over 3 actions)",
    ),
    (
        "an event older than the stored history",
        [{"time_ms": LAST_TIME_MS - 1}],
        "[0].time_ms: got 999999, must be at least 1000000, the time of the last stored event",
    ),
)

BAD_RERANKS: Sequence[tuple[str, Fields, str]] = (
    ("a reranking by no method", {"method": ""}, "rerank.method: got '', must be 'mmr' or 'dpp' or 'msd' or 'llm'"),
    ("a reranking by a method that there is not", {"method": "DPP"}, "rerank.method: got 'DPP', must be 'mmr' or"),
    ("a language model with a strength", {"method": "llm"}, "rerank.strength: got 0.5, must be 0 with method 'llm'"),
    (
        "a language model with a tail weight",
        {"method": "llm", "strength": 0, "tail_weight": 0.5},
        "rerank.tail_weight: got 0.5, must be 0 with method 'llm', which has none",
    ),
    (
        "a language model with 101 candidates to order",
        {"method": "llm", "strength": 0, "depth": 101},
        "rerank.depth: got 101, must be 0 to 100 with method 'llm' (0 is the default)",
    ),
    ("a reranking of strength 1.5", {"strength": 1.5}, "rerank.strength: got 1.5, must be 0 (by score) to 1"),
    ("a reranking of strength -1", {"strength": -1.0}, "rerank.strength: got -1.0, must be 0 (by score) to 1"),
    ("a tail weight of -1", {"tail_weight": -1.0}, "rerank.tail_weight: got -1.0, must be 0 (none) to 1 (as much as"),
    ("a tail weight of 2", {"tail_weight": 2.0}, "rerank.tail_weight: got 2.0, must be 0 (none) to 1 (as much as"),
    (
        "a tail weight for a model that counts no items",
        {"tail_weight": 0.5},
        "rerank.tail_weight: got 0.5, must be 0: the checkpoint of model small does not say how often its items were",
    ),
    ("a reranking of depth 1,001", {"depth": 1_001}, "rerank.depth: got 1001, must be 0 to 1000 (0 is the default)"),
)
