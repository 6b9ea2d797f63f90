"""Both clients as one: every method can be awaited."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from mfalcon_client import AsyncClient, Client


class ThreadedClient:
    """`Client`, each of whose calls waits in a thread of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.client = Client(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return partial(asyncio.to_thread, getattr(self.client, name))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.client.close()


MakeClient = Callable[..., Any]
BOTH = (ThreadedClient, AsyncClient)
