"""Addresses to listen on: how they are written, and why one could not be had."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EADDRINUSE

from mfalcon.errors import ConfigError

BACKLOG = 128
"""Connections that the kernel may hold for us: a queue that nobody sees, and whose clients wait for nothing."""
ALONE = (socket.SO_REUSEADDR,)
SHARED = (socket.SO_REUSEADDR, socket.SO_REUSEPORT)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the server listens. metrics: "" where they are on the port of HTTP."""

    grpc: str
    http: str
    metrics: str = ""


def authority(host: str, port: int) -> str:
    """host:port as URLs and gRPC targets write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(transport: str, host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening TCP socket; port 0 is any free one. shared: with other processes of ours that do the same.

    ConfigError names the settings of the transport and the cause.
    """
    try:
        return _bound(host, port, SHARED if shared else ALONE, backlog=BACKLOG)
    except OSError as error:
        taken = f"; end what listens there, or give another {transport}_port" if error.errno == EADDRINUSE else ""
        raise ConfigError(
            f"{transport}_host, {transport}_port: cannot listen on {authority(host, port)}: {error.strerror}{taken}"
        ) from error


def reserve(transport: str, host: str, port: int) -> socket.socket:
    """A socket that does not listen, and keeps a port for processes of ours that share it; port 0 is any free one.

    ConfigError when anybody listens there.
    """
    with listen(transport, host, port) as alone:
        port = alone.getsockname()[1]
    try:
        return _bound(host, port, (socket.SO_REUSEPORT,))  # in the way of everybody who would be alone there
    except OSError:  # connections of a server that was alone on this port are not quite over
        return _bound(host, port, SHARED)


def _bound(host: str, port: int, options: Sequence[int], backlog: int | None = None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, each answer takes 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind((host, port))
        if backlog is not None:
            sock.listen(backlog)
        return sock
    except OSError:
        sock.close()
        raise
