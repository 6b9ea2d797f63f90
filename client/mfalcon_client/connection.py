"""Where a client connects to, with what, and what each of its calls carries beside the message."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal
from urllib.parse import urlsplit

import grpc

from mfalcon_client.affinity import RANK_KEY, rank_key
from mfalcon_client.errors import ClientError, InvalidArgument
from mfalcon_client.tracing import trace_headers

MAX_MESSAGE_BYTES = 64 << 20
"""16,384 candidates with a hundred tasks are 7 MB; gRPC's own limit is 4 MiB."""

Metadata = tuple[tuple[str, str], ...]
Token = str | Callable[[], str]
"""A bearer token, or what gives the present one: it is asked before each attempt but a hedge, and must not block."""

Spread = Literal["first", "turn", "user"]
"""first: the first address that answers, as long as it does. turn: each call goes to the next one. user: calls for one
user go to one of them, and only the users of one that is gone move; calls for nobody, and hedges, go to any. Behind a
balancer it is the balancer's to do.
"""
_POLICIES: dict[Spread, dict[str, dict[str, str | int]]] = {
    "first": {"pick_first": {}},
    "turn": {"round_robin": {}},
    "user": {"ring_hash_experimental": {"requestHashHeader": RANK_KEY, "minRingSize": 1_024, "maxRingSize": 4_096}},
}


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS to the server; everything is PEM.

    root_certificates: whose signatures are trusted, None for those that gRPC brings.
    private_key, certificate_chain: this client's own, where the server asks for them.
    server_name: the name that the server's certificate must bear, where it is not the target's.
    """

    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("private_key and certificate_chain: got one of them, must be both or none")

    def __repr__(self) -> str:
        """Without the key."""
        return f"Tls(server_name={self.server_name!r})"

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC takes."""
        return grpc.ssl_channel_credentials(self.root_certificates, self.private_key, self.certificate_chain)


@dataclass(frozen=True, slots=True)
class Connection:
    """What both clients are made of.

    target: `HOST:PORT`, any name that gRPC resolves (`dns:///ranker.internal:50051`, `unix:/run/mfalcon.sock`), or
    several `IP:PORT`. spread: how calls are spread over the addresses of the target, see `Spread`.
    """

    target: str | Sequence[str]
    tls: Tls | None
    token: Token | None = field(repr=False)
    token_in_clear: bool
    spread: Spread

    def __post_init__(self) -> None:
        if self.spread not in _POLICIES:
            raise ValueError(f"spread: got {self.spread!r}, must be one of {', '.join(map(repr, _POLICIES))}")
        if self.token is not None and self.tls is None and not self.token_in_clear:
            raise ValueError("token: without tls anybody on the way could read it; allow that with token_in_clear=True")

    @property
    def address(self) -> str:
        """The target as gRPC takes it."""
        if isinstance(self.target, str):
            return self.target
        targets = list(self.target)
        if not targets:
            raise ValueError("target: got no address, must be at least one")
        if len(targets) == 1:
            return targets[0]
        hosts = [urlsplit(f"//{target}").hostname or "" for target in targets]
        if all(":" in host for host in hosts):
            return "ipv6:" + ",".join(targets)
        if all(host.replace(".", "").isdecimal() for host in hosts):
            return "ipv4:" + ",".join(targets)
        raise ValueError(
            f"target: got {targets}, several must be IP:PORT of one family; for names use dns:///NAME:PORT"
        )

    @property
    def options(self) -> list[tuple[str, str | int]]:
        """Arguments of the channel."""
        options: list[tuple[str, str | int]] = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            # A connection that died silently is found while calls wait on it; the server allows a ping every 10 s.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
            # gRPC waits up to two minutes before it looks whether a server is back.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 2_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            # Each client has connections of its own: a server bounds the calls of one.
            ("grpc.use_local_subchannel_pool", 1),
            # Nobody's DNS record makes gRPC repeat what must not be: what is repeated is decided in retry.py.
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.primary_user_agent", f"mfalcon-client/{_version()}"),
        ]
        if self.spread == "user":
            # gRPC does not take the header to be hashed from its users otherwise, as of 1.85.
            os.environ.setdefault("GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY", "true")
        options.append(("grpc.service_config", json.dumps({"loadBalancingConfig": [_POLICIES[self.spread]]})))
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def metadata(self, user_id: str | None) -> Metadata:
        """What a call carries. user_id: whose it is; a call without one may go anywhere."""
        metadata = list(trace_headers())
        if user_id is not None:
            metadata.append((RANK_KEY, rank_key(user_id)))
        if self.token is not None:
            token = self.token if isinstance(self.token, str) else self.token()
            if not (isinstance(token, str) and token.isascii() and token.isprintable()):
                raise InvalidArgument("INVALID_ARGUMENT", "token: must be printable ASCII")
            metadata.append(("authorization", f"Bearer {token}"))
        return tuple(metadata)


def anywhere(metadata: Metadata) -> Metadata:
    """That of a hedge beside a call that carries this: any replica may answer it. It bears the same token, as what a
    token raises must not end a call that is under way.
    """
    return tuple(pair for pair in metadata if pair[0] != RANK_KEY)


class Birthplace:
    """The process that a client was made in: gRPC's threads do not come along in a fork, and a call would hang."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def check(self) -> None:
        """Raise ClientError in another process."""
        if os.getpid() != self._pid:
            raise ClientError("FAILED_PRECONDITION", "this client was made before a fork: make one in each process")


def _version() -> str:
    try:
        return version("mfalcon-client")
    except PackageNotFoundError:
        return "checkout"
