"""What only protobuf can say."""

from collections.abc import Sequence

from tests.server.bad_input.cases import INVALID, TOO_LARGE, Case, GrpcCase
from tests.server.bad_input.making import append_with, message_of, over_grpc, rank_with

CASES: Sequence[Case] = (
    *(
        over_grpc("AppendEvents", f"an event with value {name}", append_with({}, {"value": value}), INVALID, says)
        for name, value, says in (
            ("NaN", "NaN", "events[1].value: got nan, must be a finite 32-bit float"),
            ("infinity", "Infinity", "events[1].value: got inf, must be a finite 32-bit float"),
        )
    ),
    over_grpc(
        "Rank",
        "a reranking of strength NaN",
        rank_with(rerank={"method": "mmr", "strength": "NaN"}),
        INVALID,
        "got nan",
    ),
    over_grpc(
        "Rank",
        "a tail weight of NaN",
        rank_with(rerank={"method": "mmr", "strength": 0.5, "tail_weight": "NaN"}),
        INVALID,
        "rerank.tail_weight: got nan, must be 0 (none) to 1",
    ),
    over_grpc(
        "Rank",
        "a feature of NaN",
        rank_with(features={"names": ["rank_before", "price"], "values": [1, 2, 3, "NaN"]}),
        INVALID,
        "features.values[3]: got nan, must be a finite 32-bit float (price of candidate 1)",
    ),
    GrpcCase(
        "Rank",
        "4 MiB of names of features",
        b"\x4a\xfa\xff\xff\x01" + b"\x0a\0" * (2**21 - 3),
        INVALID,
        "features.names: got more than 256, must be at most 256 names",
    ),
    GrpcCase(
        "Rank",
        "4 MiB of features one by one",
        b"\x4a\xf7\xff\xff\x01" + b"\x15\0\0\0\0" * 838_859,
        INVALID,
        "mfalcon.v1.DenseFeatures: got more than 256, must be at most 256 single or unknown fields",
    ),
    *(
        GrpcCase(method, "bytes that are no protobuf", b"\xff\xff\xff", INVALID, f"mfalcon.v1.{name}: got 3 bytes")
        for method, name in (
            ("Rank", "RankRequest"),
            ("AppendEvents", "AppendEventsRequest"),
            ("GetHistory", "GetHistoryRequest"),
            ("Prefill", "PrefillRequest"),
            ("DeleteUser", "DeleteUserRequest"),
            ("GetModel", "GetModelRequest"),
        )
    ),
    GrpcCase(
        "Rank",
        "a message cut short",
        message_of("Rank", rank_with()).SerializeToString()[:-1],
        INVALID,
        "mfalcon.v1.RankRequest: got 22 bytes that are no such message",
    ),
    GrpcCase("Rank", "user_id that is not UTF-8", b"\x0a\x02\xff\xfe", INVALID, "mfalcon.v1.RankRequest: got 4 bytes"),
    GrpcCase("Rank", "candidates of 7 bytes, packed", b"\x0a\x01a\x12\x07" + b"\1" * 7, INVALID, "no such message"),
    GrpcCase("Rank", "an empty message", b"", INVALID, "user_id: got ''"),
    *(
        GrpcCase(method, f"4 MiB of {shown}", part * (4 * 2**20 // len(part)), INVALID, says)
        for method, shown, part, says in (
            ("Rank", "empty events", b"\x2a\0", "recent_events: got more than 1024, must be 0 to 1024 events"),
            ("Rank", "context without names", b"\x32\0", "context: got more than 256, must be 0 to 256 entries"),
            ("Rank", "candidates one by one", b"\x11" + b"\1" * 8, "candidates: got more than 16384, must be 1 to"),
            ("AppendEvents", "empty events", b"\x12\0", "events: got more than 10000, must be 1 to 10000 events"),
            ("Prefill", "user ids", b"\x0a\0", "got more than 256, must be at most 256 single or unknown fields"),
            ("DeleteUser", "unknown fields", b"\x78\1", "got more than 256, must be at most 256 single or unknown"),
        )
    ),
    GrpcCase("Rank", "more than 4 MiB", b"\0" * (4 * 2**20 + 1), TOO_LARGE, "4194304"),
    GrpcCase("Delete", "a method that there is not", b"", "UNIMPLEMENTED", "Method not found"),
)
