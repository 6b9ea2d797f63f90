"""A whole load on a running server: users of its own, a run for each rate or a search for the highest, the findings."""

import asyncio
import dataclasses
import gc
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from loadtest.load.driver import Driver, Limits, Stream
from loadtest.load.ledger import Ledger
from loadtest.load.load_result import (
    NOTES,
    Found,
    LoadResult,
    Run,
    class_report,
    complaints_of,
    lag_ms,
    warnings_of,
)
from loadtest.load.own_users import OwnUsers
from loadtest.load.prepare import Prepared, prepare, unknown_share
from loadtest.load.search import search
from loadtest.load.target import ServedModel, Target
from loadtest.load.traffic import Traffic, highest_rate
from loadtest.report.machine import commit, this_machine
from mfalcon.errors import CallFailed, ConfigError
from mfalcon.types import Ids

_FEW = 20
"""A run of fewer requests says nothing about a p99."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True, eq=False)
class LoadOptions:
    """What to send where. main: at each of the rates in turn, for so many seconds; beside: at the same time.

    item_ids: of candidates and histories. version: of the checkpoint that they come from, or "". check: answers are
    held against the oracle's; None for whether the model computes in float32. search_p99_ms: search from the first rate
    on for the highest whose p99 is at most this. command: as it was called, for the result.
    """

    target: str
    main: Traffic
    rates: tuple[float, ...]
    item_ids: Ids
    seconds: float = 30.0
    beside: tuple[Traffic, ...] = ()
    version: str = ""
    check: bool | None = None
    search_p99_ms: float | None = None
    seed: int = 0
    command: str = ""
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class _Stop:
    sending: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)


async def load(
    options: LoadOptions, target: Target, say: Callable[[str], None], live: Callable[[str], None] | None = None
) -> LoadResult:
    """Load the server and delete what was made there, also when it is stopped: a SIGINT or SIGTERM ends the run that
    sends and keeps its figures; at any other time, and as the second one, it gives up (CancelledError).

    live: takes a line a second. Raises ConfigError if the server cannot be reached, refuses, or serves another
    checkpoint.
    """
    _check_options(options)
    machine = this_machine()
    async with _stoppable() as stop:
        try:
            model = await target.model()
            _check_model(options, model)
            users = OwnUsers(target)
            async with users:
                classes = await _prepared(options, target, users, model, say)
                runs, found = await _runs(options, target, users, classes, model, stop, say, live)
        except CallFailed as error:
            raise ConfigError(f"target: {options.target} answers {error}") from error
    unknown = unknown_share([each for prepared in classes.values() for each in prepared])
    return LoadResult(
        benchmark="load",
        machine=machine,
        commit=commit(),
        command=options.command,
        notes=NOTES,
        target=options.target,
        model=model.name,
        version=model.version,
        backend=model.backend,
        seed=options.seed,
        unknown_share=unknown,
        runs=runs,
        found=found,
        undeleted=users.undeleted,
        complaints=tuple(complaints_of(runs)),
        warnings=tuple(warnings_of(runs, unknown, users.undeleted)),
    )


def _check_options(options: LoadOptions) -> None:
    names = [traffic.name for traffic in (options.main, *options.beside)]
    if taken := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"--beside: the name {', '.join(taken)} is taken")
    rate, highest = (
        max(*options.rates, *(traffic.rate for traffic in options.beside), 0.0),
        highest_rate(options.seconds),
    )
    if rate > highest:
        raise ConfigError(f"--rate: got {rate:g} for {options.seconds:g} s, must be at most {highest:g}")


def _check_model(options: LoadOptions, model: ServedModel) -> None:
    known = options.version[: len(model.version)]
    if known not in ("", model.version):
        raise ConfigError(f"target: {options.target} serves version {model.version}, the checkpoint is {known}")
    for traffic in (options.main, *options.beside):
        if model.max_candidates and traffic.candidates > model.max_candidates:
            raise ConfigError(
                f"{traffic.name}: got {traffic.candidates} candidates, the server takes {model.max_candidates}"
            )


async def _prepared(
    options: LoadOptions, target: Target, users: OwnUsers, model: ServedModel, say: Callable[[str], None]
) -> dict[str, list[Prepared]]:
    """What each class asks, by its name."""
    rng = np.random.default_rng((options.seed, 0))
    classes: dict[str, list[Prepared]] = {}
    for traffic in (options.main, *options.beside):
        say(f"{traffic.name}: {traffic.num_users} users of {traffic.history} events, {traffic.candidates} candidates")
        classes[traffic.name] = await prepare(target, users, traffic, options.item_ids, model.num_actions, rng)
    return classes


async def _runs(
    options: LoadOptions,
    target: Target,
    users: OwnUsers,
    classes: dict[str, list[Prepared]],
    model: ServedModel,
    stop: _Stop,
    say: Callable[[str], None],
    live: Callable[[str], None] | None,
) -> tuple[tuple[Run, ...], Found | None]:
    runs: list[Run] = []
    stop.sending = True
    checks = "float32" in model.backend.split() if options.check is None else options.check

    async def run(rate: float) -> Run:
        say(f"{rate:g} requests a second for {options.seconds:g} s")
        rng = np.random.default_rng((options.seed, 1, len(runs)))
        all_traffic = (dataclasses.replace(options.main, rate=rate), *options.beside)
        streams = [Stream(traffic, classes[traffic.name], checks) for traffic in all_traffic]
        runs.append(await _run(Driver(target, users, options.limits, rng), streams, options.seconds, stop, live))
        return runs[-1]

    async def holds(rate: float) -> bool:
        if stop.asked.is_set():
            return False
        done = await run(rate)
        answered, bound = done.main.answered, options.search_p99_ms
        assert bound is not None
        return done.main.lost_nothing and answered is not None and answered.p99_ms <= bound

    if options.search_p99_ms is not None:
        low, high = await search(
            options.rates[0], holds, lowest=_FEW / options.seconds, highest=highest_rate(options.seconds)
        )
        return tuple(runs), None if stop.asked.is_set() else Found(options.search_p99_ms, low, high)
    for rate in options.rates:
        if not stop.asked.is_set():
            await run(rate)
    return tuple(runs), None


async def _run(
    driver: Driver, streams: Sequence[Stream], seconds: float, stop: _Stop, live: Callable[[str], None] | None
) -> Run:
    ledgers = [stream.ledger for stream in streams]
    gc.collect()
    gc.freeze()  # a collection that looks at every module there is would be a stall of the driver
    cpu = time.process_time()
    telling = asyncio.create_task(_tell(driver, ledgers, seconds, live)) if live else None
    try:
        took = await driver.run(streams, seconds, stop.asked)
    finally:
        gc.unfreeze()
        if telling is not None:
            telling.cancel()
    took = max(took, 1e-3)
    p99, most = lag_ms(ledgers)
    return Run(
        seconds=took,
        stopped=stop.asked.is_set(),
        lag_p99_ms=p99,
        lag_max_ms=most,
        cores=(time.process_time() - cpu) / took,
        classes=tuple(class_report(stream.traffic, stream.ledger, took) for stream in streams),
    )


async def _tell(driver: Driver, ledgers: Sequence[Ledger], seconds: float, live: Callable[[str], None]) -> None:
    """A line a second, of all classes together."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(1)
        counts = sum((ledger.counts for ledger in ledgers), Counter())
        ends = ", ".join(f"{outcome.value} {number}" for outcome, number in counts.items() if number)
        live(f"{time.monotonic() - began:.0f} of {seconds:g} s: {ends}; in flight {driver.in_flight}")


@asynccontextmanager
async def _stoppable() -> AsyncIterator[_Stop]:
    """Where signals ask for a stop, and a second one cancels."""
    loop, stop, task = asyncio.get_running_loop(), _Stop(), asyncio.current_task()
    assert task is not None

    def ask() -> None:
        if stop.asked.is_set() or not stop.sending:
            task.cancel()
        stop.asked.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, ask)
    try:
        yield stop
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
