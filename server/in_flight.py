"""The requests of a process that have no answer yet: which are still taken, and when each is cut off."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from mfalcon.errors import DeadlineExceeded, ShuttingDown


class InFlight:
    """Those of one handler. Lives on its event loop."""

    def __init__(self) -> None:
        self.draining = False
        """Whether new requests are refused; those in flight go on."""
        self._aborted = False
        self._scopes: set[asyncio.Timeout] = set()
        self._num_batches = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def abort(self) -> None:
        """Answer all with ShuttingDown, now."""
        self._aborted = True
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())

    async def wait_idle(self) -> None:
        """Return when there is none."""
        await self._idle.wait()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Count a batch, whose parts are `admitted` as such: they go on while the server drains. Raises
        ShuttingDown.
        """
        self._check(of_batch=False)
        self._num_batches += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_batches -= 1
            self._settle()

    @asynccontextmanager
    async def admitted(self, seconds: float, *, writes: bool = False, of_batch: bool = False) -> AsyncIterator[float]:
        """Count a request that has so many seconds; gives its deadline. writes: what is cut off may be done all the
        same. Raises ShuttingDown and DeadlineExceeded.
        """
        self._check(of_batch=of_batch)
        scope = asyncio.timeout(seconds)
        try:
            async with scope:
                self._scopes.add(scope)
                self._idle.clear()
                yield time.monotonic() + seconds
        except TimeoutError as error:
            if not scope.expired():
                raise
            if self._aborted:
                raise ShuttingDown("the server shut down before the answer was ready", may_be_done=writes) from error
            outcome = "; it may have been done all the same" if writes else ""
            text = f"no answer within {seconds * 1000:.0f} ms{outcome}"
            raise DeadlineExceeded(text, may_be_done=writes) from error
        finally:
            self._scopes.discard(scope)
            self._settle()

    def _check(self, *, of_batch: bool) -> None:
        if self._aborted or (self.draining and not of_batch):
            raise ShuttingDown("the server is shutting down; ask another one")

    def _settle(self) -> None:
        if not self._scopes and not self._num_batches:
            self._idle.set()
