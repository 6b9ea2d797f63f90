"""Addresses to listen on: how they are written, and why one could not be had."""

import socket

from mfalcon.errors import ConfigError


def authority(host: str, port: int) -> str:
    """host:port as URLs and gRPC targets write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(transport: str, host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 is any free one. ConfigError names the settings of the transport and the cause."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, each answer takes 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
        return sock
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"{transport}_host, {transport}_port: cannot listen on {authority(host, port)}: {error.strerror}"
        ) from error
