"""What a gRPC server lets its callers take of it: of messages, calls, streams and connections."""

from collections.abc import Mapping
from dataclasses import dataclass

from proto import ranking_pb2
from server.grpc.wire import MessageLimits, Repeated
from server.limits import MAX_CONDITIONS, MAX_CONTEXT_ENTRIES, MAX_DENSE_FEATURES, RANKED_TOGETHER, Limits

KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
"""A connection on which nothing was heard is asked after a minute, and closed without an answer: its calls and watches
are nobody's."""
MIN_PING_MS = 10_000
"""Callers may ask as often; gRPC's own five minutes close connections of clients that are set up as is usual."""
NOT_COMPRESSED = 1
"""A bit for each way to pack messages, of which the first leaves them as they are."""
ENDED_STREAMS = 25
"""Of a connection, that are not cleared away yet: of calls that were reset as they began, Python is yet to hear."""

DENSE = MessageLimits(
    ranking_pb2.DenseFeatures.DESCRIPTOR.full_name,
    Repeated(
        "features.names",
        ranking_pb2.DenseFeatures.NAMES_FIELD_NUMBER,
        MAX_DENSE_FEATURES,
        f"at most {MAX_DENSE_FEATURES} names",
    ),
)
"""Its values are packed into few fields, and as many as there is room for in a message."""


RETRIEVE = MessageLimits(
    ranking_pb2.Retrieve.DESCRIPTOR.full_name,
    Repeated(
        "retrieve.conditions",
        ranking_pb2.Retrieve.CONDITIONS_FIELD_NUMBER,
        MAX_CONDITIONS,
        f"1 to {MAX_CONDITIONS} conditions",
    ),
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The settings of these. connection_age_s: when a connection is asked to end, 0 for never; its calls get
    `grace_ms`. unpacks: takes compressed messages. shares_port: other processes of this server listen on the same port.
    """

    max_message_bytes: int
    max_connections: int
    max_streams: int
    max_calls: int
    max_watches: int
    connection_age_s: float
    grace_ms: int
    handshake_ms: int
    max_metadata_bytes: int
    has_reflection: bool = True
    unpacks: bool = False
    shares_port: bool = False

    def options(self) -> Mapping[str, int]:
        """Channel arguments of grpc.aio.server."""
        options = {
            "grpc.max_receive_message_length": self.max_message_bytes,
            "grpc.max_send_message_length": self.max_message_bytes,
            # Between the two gRPC refuses by chance.
            "grpc.max_metadata_size": self.max_metadata_bytes,
            "grpc.absolute_max_metadata_size": self.max_metadata_bytes,
            "grpc.max_allowed_incoming_connections": self.max_connections,
            "grpc.max_concurrent_streams": self.max_streams,
            # Streams that have ended count too until they are cleared away, which holds against rapid resets. Without
            # room for those of answered calls, clients who use all of their streams are refused more.
            "grpc.http2.max_deallocating_streams": min(self.max_streams, ENDED_STREAMS),
            # Calls that wait to be taken up: past gRPC's 1,000 a caller of many makes it drop anybody's.
            "grpc.server.max_pending_requests": self.max_calls,
            "grpc.server.max_pending_requests_hard_limit": 2 * self.max_calls,
            "grpc.keepalive_time_ms": KEEPALIVE_MS,
            "grpc.keepalive_timeout_ms": KEEPALIVE_TIMEOUT_MS,
            "grpc.keepalive_permit_without_calls": 1,
            "grpc.http2.min_ping_interval_without_data_ms": MIN_PING_MS,
            "grpc.server_handshake_timeout_ms": self.handshake_ms,
            # A second server on the same port must fail, not take half of the requests.
            "grpc.so_reuseport": int(self.shares_port),
        }
        if not self.unpacks:  # gRPC unpacks in the thread of the event loop: 4 MiB take 10 ms of it, and 4 KB to send
            options["grpc.compression_enabled_algorithms_bitset"] = NOT_COMPRESSED
        if self.connection_age_s:
            options["grpc.max_connection_age_ms"] = round(self.connection_age_s * 1000)
            options["grpc.max_connection_age_grace_ms"] = self.grace_ms
        return options


def rank_limits(limits: Limits, times: int = 1) -> MessageLimits:
    """What a RankRequest may hold, or so many times that."""
    message, most_candidates = ranking_pb2.RankRequest, times * limits.max_candidates
    most_events, most_entries = times * limits.max_recent_events, times * MAX_CONTEXT_ENTRIES
    return MessageLimits(
        message.DESCRIPTOR.full_name,
        Repeated(
            "candidates",
            message.CANDIDATES_FIELD_NUMBER,
            most_candidates,
            f"1 to {most_candidates} candidates",
            is_fixed64=True,
        ),
        Repeated(
            "candidate_ids",
            message.CANDIDATE_IDS_FIELD_NUMBER,
            most_candidates,
            f"1 to {most_candidates} candidates",
        ),
        Repeated(
            "recent_events",
            message.RECENT_EVENTS_FIELD_NUMBER,
            most_events,
            f"0 to {most_events} events",
        ),
        Repeated("context", message.CONTEXT_FIELD_NUMBER, most_entries, f"0 to {most_entries} entries"),
        inner={message.FEATURES_FIELD_NUMBER: DENSE, message.RETRIEVE_FIELD_NUMBER: RETRIEVE},
    )


def rank_batch_limits(limits: Limits) -> MessageLimits:
    """What a RankBatchRequest may hold; the bounds of a rank are of all its ranks together, four times as large."""
    message, most = ranking_pb2.RankBatchRequest, limits.max_ranks_per_batch
    number = message.REQUESTS_FIELD_NUMBER
    return MessageLimits(
        message.DESCRIPTOR.full_name,
        Repeated("requests", number, most, f"1 to {most} ranks"),
        inner={number: rank_limits(limits, RANKED_TOGETHER)},
    )


def batch_limits(limits: Limits) -> MessageLimits:
    """What an AppendBatchRequest may hold; the bound of events is of all its appends together."""
    message, most = ranking_pb2.AppendBatchRequest, limits.max_appends_per_batch
    number = message.APPENDS_FIELD_NUMBER
    return MessageLimits(
        message.DESCRIPTOR.full_name,
        Repeated("appends", number, most, f"1 to {most} appends"),
        inner={number: append_limits(limits)},
    )


def interests_limits(limits: Limits) -> MessageLimits:
    """What an InterestsRequest may hold."""
    message, most = ranking_pb2.InterestsRequest, limits.max_recent_events
    return MessageLimits(
        message.DESCRIPTOR.full_name,
        _conditions(message.CONDITIONS_FIELD_NUMBER),
        Repeated("recent_events", message.RECENT_EVENTS_FIELD_NUMBER, most, f"0 to {most} events"),
    )


def prefill_limits() -> MessageLimits:
    """What a PrefillRequest may hold."""
    message = ranking_pb2.PrefillRequest
    return MessageLimits(message.DESCRIPTOR.full_name, _conditions(message.CONDITIONS_FIELD_NUMBER))


def _conditions(number: int) -> Repeated:
    return Repeated("conditions", number, MAX_CONDITIONS, f"at most {MAX_CONDITIONS} conditions")


def append_limits(limits: Limits) -> MessageLimits:
    """What an AppendEventsRequest may hold."""
    message, most = ranking_pb2.AppendEventsRequest, limits.max_events_per_append
    return MessageLimits(
        message.DESCRIPTOR.full_name,
        Repeated("events", message.EVENTS_FIELD_NUMBER, most, f"1 to {most} events"),
    )
