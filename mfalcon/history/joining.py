"""One append of a user in flight at a time: those that come meanwhile wait, and are written together by the next one.

Without it the appends of one user, each of which must name the history that it was made for, would fail each other.
Knows nothing of where they are written.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from mfalcon.errors import DeadlineExceeded, MFalconError, Overloaded
from mfalcon.types import Append, Appended

_log = logging.getLogger(__name__)

MAX_WAITING = 1_024
"""Appends of one user that wait: more are refused."""
MAX_JOINED = 64
MAX_JOINED_BYTES = 1 << 20
"""Of events that are written together; one append alone may be larger."""
_RETRY_AFTER_S = 0.1
_MARGIN_S = 0.01
_GRACE_S = 0.1


class Waiting:
    """An append whose caller waits. deadline: time.monotonic() seconds. is_taken: whether its turn has come. is_sent:
    whether it may be written by now.
    """

    def __init__(self, append: Append, deadline: float | None) -> None:
        self.append = append
        self.deadline = deadline
        self.is_taken = False
        self.is_sent = False
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Appended] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        if deadline is not None:
            left = deadline - time.monotonic()
            # A moment before its caller gives up, who can then not be told any more that it has not been sent.
            self._timer = loop.call_later(max(0.0, left - min(_MARGIN_S, left / 4)), self._end, deadline)

    def tell(self, told: Appended) -> None:
        """It is written."""
        if not self.answer.done():
            self.answer.set_result(told)

    def fail(self, error: Exception) -> None:
        """It is not, or nobody knows."""
        if not self.answer.done():
            self.answer.set_exception(error)

    @property
    def is_over(self) -> bool:
        """Whether it has its answer, or nobody waits for one any more: it must not be sent then."""
        if not self.answer.done() and self.deadline is not None and time.monotonic() >= self.deadline:
            self.fail(_too_late(is_sent=False))
        return self.answer.done()

    async def result(self) -> Appended:
        """What it is told; raises what it failed with."""
        try:
            return await self.answer
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def _end(self, deadline: float) -> None:
        """Once its turn has come it has time until the deadline, and as much more as `write` needs to say so: it knows
        more.
        """
        if not self.is_taken or time.monotonic() >= deadline + _GRACE_S / 2:
            self.fail(_too_late(is_sent=self.is_sent))
        else:
            left = deadline + _GRACE_S - time.monotonic()
            self._timer = asyncio.get_running_loop().call_later(left, self._end, deadline)


class Joining:
    """Appends of all users. write: writes some of one user's, in order, and answers each; what it raises is the answer
    of all that have none. It returns how many seconds this user's next ones should wait, so that other writers come
    first. Lives on the event loop.
    """

    def __init__(self, write: Callable[[str, Sequence[Waiting]], Awaitable[float]]) -> None:
        self._write = write
        self._waiting: dict[str, deque[Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def append(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Write it, after what waits already. Raises what `write` does, Overloaded, and DeadlineExceeded, which says
        whether it may have been written.
        """
        queue = self._waiting.get(user_id)
        if queue is None:
            queue = self._waiting[user_id] = deque()
            task = asyncio.create_task(self._write_all(user_id, queue), name="appends")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif len(queue) >= MAX_WAITING:
            text = f"{MAX_WAITING} appends of this user wait already; try again later; nothing was written"
            raise Overloaded(text, retry_after_s=_RETRY_AFTER_S, elsewhere=False)
        waiting = Waiting(append, deadline)
        queue.append(waiting)
        return await waiting.result()

    async def _write_all(self, user_id: str, queue: deque[Waiting]) -> None:
        """Until nobody waits any more."""
        try:
            while joined := _next(queue):
                pause_s = await self._write_some(user_id, joined)
                if pause_s:
                    await asyncio.sleep(pause_s)
        finally:
            del self._waiting[user_id]

    async def _write_some(self, user_id: str, joined: Sequence[Waiting]) -> float:
        try:
            return await self._write(user_id, joined)
        except MFalconError as error:
            for waiting in joined:
                waiting.fail(_copy(error))
        except Exception as error:  # noqa: BLE001 (a defect of ours: every caller must have an answer)
            _log.exception("appends failed")
            for waiting in joined:
                waiting.fail(error)
        return 0.0


def _next(queue: deque[Waiting]) -> list[Waiting]:
    """What is written next, in the order in which it came."""
    joined: list[Waiting] = []
    num_bytes = 0
    while queue and len(joined) < MAX_JOINED:
        num_bytes += queue[0].append.events.nbytes
        if joined and num_bytes > MAX_JOINED_BYTES:
            break
        waiting = queue.popleft()
        if waiting.is_over:
            num_bytes -= waiting.append.events.nbytes
        else:
            waiting.is_taken = True
            joined.append(waiting)
    return joined


def _too_late(*, is_sent: bool) -> DeadlineExceeded:
    if is_sent:
        text = "the deadline passed before the write was answered; it may have been written all the same"
        return DeadlineExceeded(text, may_be_done=True)
    return DeadlineExceeded("the deadline passed before the events could be written; nothing was written")


def _copy(error: MFalconError) -> MFalconError:
    """Each who waits raises one of his own: a traceback belongs to who raises."""
    copied = type(error).__new__(type(error), *error.args)
    vars(copied).update(vars(error))
    return copied
