"""Settings that bound connections and calls of gRPC and HTTP."""

from typing import Literal

from pydantic import BaseModel, Field

from server.settings.kinds import AtLeastOne


class TransportSettings(BaseModel):
    """How many there may be at once, and how long they may take."""

    http_connections: AtLeastOne = Field(
        default=4_096,
        description="Most HTTP connections, and at most half of the files that the process may open. Where one more "
        "comes, the one that has waited longest for its client is closed.",
    )
    http_header_timeout_s: float = Field(
        default=10.0, ge=0.01, le=3_600, description="Longest time for the head of an HTTP request to arrive, in s."
    )
    http_body_timeout_s: float = Field(
        default=30.0,
        ge=0.01,
        le=3_600,
        description="Longest time for the body of an HTTP request to arrive, and for its answer to be read, in s.",
    )
    reflection: bool = Field(default=True, description="Tell over gRPC which services and messages there are.")
    grpc_compression: bool = Field(
        default=False,
        description="Take gRPC messages that are compressed (gzip, deflate), each of which may hold the event loop for "
        "as long as max_message_bytes take to unpack; without it they are refused.",
    )
    grpc_max_connections: AtLeastOne = Field(
        default=1_024, description="Most gRPC connections at once; more are closed as they come."
    )
    grpc_max_streams: AtLeastOne = Field(
        default=100, description="Most calls at once on one gRPC connection; a client waits with more."
    )
    grpc_max_calls: AtLeastOne = Field(
        default=4_096,
        description="Most gRPC calls at once, health watches included, and half as many of one known caller; more are "
        "refused as overload.",
    )
    grpc_max_watches: int = Field(
        default=1_024, ge=0, description="Most health watches at once; more are refused as overload."
    )
    grpc_connection_age_s: float = Field(
        default=0.0,
        ge=0,
        le=10**6,
        description="Seconds after which a gRPC connection is asked to end, so that clients spread over new replicas; "
        "its calls get request_timeout_ms. 0 keeps connections.",
    )
    grpc_listen: Literal["always", "ready"] = Field(
        default="always",
        description="When gRPC connections are taken: always, so that a server that starts or drains says so; or while "
        "requests are answered (ready), for balancers that do not read a gRPC status, as nginx.",
    )
