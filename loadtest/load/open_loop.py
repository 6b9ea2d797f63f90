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
from loadtest.load.watch import Ask, Watch
from loadtest.load.watched import NOTES as WATCHED_NOTES
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
    on for the highest whose p99 is at most this. search_tries: a rate fails there if so many runs of it do. command: as
    it was called, for the result. fail_on_slope: a figure of the server that grows is a complaint, not a warning.
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
    search_tries: int = 1
    seed: int = 0
    command: str = ""
    fail_on_slope: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class _Stop:
    sending: bool = False
    asked: asyncio.Event = field(default_factory=asyncio.Event)


async def load(
    options: LoadOptions,
    target: Target,
    say: Callable[[str], None],
    live: Callable[[str], None] | None = None,
    ask: Ask | None = None,
) -> LoadResult:
    """Load the server and delete what was made there, also when it is stopped: a SIGINT or SIGTERM ends the run that
    sends and keeps its figures; at any other time, and as the second one, it gives up (CancelledError).

    live: takes a line a second. ask: for what the server tells of itself, which is watched during each run. Raises
    ConfigError if the server cannot be reached, refuses, or serves another checkpoint.
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
                runs, found = await _runs(options, target, users, classes, model, stop, say, live, ask)
        except CallFailed as error:
            raise ConfigError(f"target: {options.target} answers {error}") from error
    grown = [f"{run.main.name}: {text}" for run in runs if run.watched for text in run.watched.complaints()]
    complaints, warnings = (grown, []) if options.fail_on_slope else ([], grown)
    unknown = unknown_share([each for prepared in classes.values() for each in prepared])
    return LoadResult(
        benchmark="load",
        machine=machine,
        commit=commit(),
        command=options.command,
        notes=NOTES if ask is None else (*NOTES, *WATCHED_NOTES),
        target=options.target,
        model=model.name,
        version=model.version,
        backend=model.backend,
        seed=options.seed,
        unknown_share=unknown,
        runs=runs,
        found=found,
        undeleted=users.undeleted,
        complaints=(*complaints_of(runs), *complaints),
        warnings=(*warnings_of(runs, unknown, users.undeleted), *warnings),
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
    ask: Ask | None,
) -> tuple[tuple[Run, ...], Found | None]:
    runs: list[Run] = []
    stop.sending = True
    checks = "float32" in model.backend.split() if options.check is None else options.check

    async def run(rate: float) -> Run:
        say(f"{rate:g} requests a second for {options.seconds:g} s")
        rng = np.random.default_rng((options.seed, 1, len(runs)))
        all_traffic = (dataclasses.replace(options.main, rate=rate), *options.beside)
        streams = [Stream(traffic, classes[traffic.name], checks) for traffic in all_traffic]
        driver, watch = Driver(target, users, options.limits, rng), None if ask is None else Watch(ask, options.seconds)
        runs.append(await _run(driver, streams, options.seconds, stop, live, watch))
        return runs[-1]

    async def holds(rate: float) -> bool:
        for _ in range(options.search_tries):
            if stop.asked.is_set():
                return False
            done = await run(rate)
            answered, bound = done.main.answered, options.search_p99_ms
            assert bound is not None
            if done.main.lost_nothing and answered is not None and answered.p99_ms <= bound:
                return True
        return False

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
    driver: Driver,
    streams: Sequence[Stream],
    seconds: float,
    stop: _Stop,
    live: Callable[[str], None] | None,
    watch: Watch | None,
) -> Run:
    ledgers = [stream.ledger for stream in streams]
    gc.collect()
    gc.freeze()  # a collection that looks at every module there is would be a stall of the driver
    cpu = time.process_time()
    beside = [_tell(driver, ledgers, seconds, live)] if live else []
    beside += [watch.run()] if watch else []
    tasks = [asyncio.create_task(each) for each in beside]
    try:
        took = await driver.run(streams, seconds, stop.asked)
    finally:
        gc.unfreeze()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    took = max(took, 1e-3)
    p99, most = lag_ms(ledgers)
    return Run(
        seconds=took,
        stopped=stop.asked.is_set(),
        lag_p99_ms=p99,
        lag_max_ms=most,
        cores=(time.process_time() - cpu) / took,
        classes=tuple(class_report(stream.traffic, stream.ledger, took) for stream in streams),
        watched=watch.result({stream.traffic.name: stream.in_time() for stream in streams}) if watch else None,
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
