"""The way back from the device: every answer arrives, and those that come together cost one wake-up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from typing import TypeVarTuple

import pytest

from mfalcon.engine.answers import Answers

Args = TypeVarTuple("Args")


class CountedLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread wakes it."""

    num_woken = 0

    def call_soon_threadsafe(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        """As the loop's own."""
        self.num_woken += 1
        return super().call_soon_threadsafe(callback, *args, context=context)


async def waiting(answers: Answers, futures: list[Future[int]]) -> list[asyncio.Task[int]]:
    """A task for each, which waits."""
    tasks = [asyncio.create_task(answers.of(future)) for future in futures]
    await asyncio.sleep(0)
    return tasks


def test_the_answers_of_a_step_cost_one_wake_up() -> None:
    """The loop is held up here, as by the GIL while a step ends; then everybody is told."""

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountedLoop)
        answers, futures = Answers(), [Future[int]() for _ in range(32)]
        tasks = await waiting(answers, futures)
        loop.num_woken = 0
        for number, future in enumerate(futures):
            future.set_result(number)
        assert loop.num_woken == 1
        assert await asyncio.gather(*tasks) == list(range(32))
        (task,) = await waiting(answers, [late := Future[int]()])
        late.set_result(7)
        assert (await task, loop.num_woken) == (7, 2)

    with asyncio.Runner(loop_factory=CountedLoop) as runner:
        runner.run(ask())


async def test_every_answer_of_several_threads_arrives() -> None:
    answers, futures = Answers(), [Future[int]() for _ in range(2_000)]
    tasks = await waiting(answers, futures)

    def resolve(first: int) -> None:
        for number in range(first, len(futures), 2):
            futures[number].set_result(number)

    await asyncio.gather(asyncio.to_thread(resolve, 0), asyncio.to_thread(resolve, 1))
    async with asyncio.timeout(60):
        assert await asyncio.gather(*tasks) == list(range(2_000))


async def test_an_error_is_raised_and_a_done_future_answered_at_once() -> None:
    answers, failed, done = Answers(), Future[int](), Future[int]()
    (task,) = await waiting(answers, [failed])
    failed.set_exception(ValueError("x"))
    with pytest.raises(ValueError, match="x"):
        await task
    done.set_result(3)
    assert await answers.of(done) == 3


async def test_who_leaves_cancels_what_has_not_begun() -> None:
    answers, queued, running = Answers(), Future[int](), Future[int]()
    running.set_running_or_notify_cancel()
    tasks = await waiting(answers, [queued, running])
    for task in tasks:
        task.cancel()
    assert all(
        isinstance(left, asyncio.CancelledError) for left in await asyncio.gather(*tasks, return_exceptions=True)
    )
    assert queued.cancelled()
    running.set_result(1)  # nobody waits for it any more
    await asyncio.sleep(0)
