"""A client of a running server whose errors end a command as one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from mfalcon.errors import CallFailed
from mfalcon_client import Client, ClientError


@contextmanager
def calling(target: str, timeout_s: float = 10.0) -> Iterator[Client]:
    """A client until the end of the block. What it raises becomes CallFailed."""
    with Client(target, timeout_s=timeout_s) as client:
        try:
            yield client
        except ClientError as error:
            raise CallFailed(error.code, error.details) from error
