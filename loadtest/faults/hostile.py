"""Hostile clients attack a server in every way while good ones rank over both transports: do these see anything of it?

Attacks run in a process of their own, one after the other, each between stretches without any: the figures of a row
are of good clients of one process, who ask at one pace all the while.
"""

import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from loadtest.bench.everything import certificate_in
from loadtest.faults.attacks import ATTACKS, TLS_ATTACKS
from loadtest.faults.bystanders import connected
from loadtest.faults.good_clients import GoodClients, Tally
from loadtest.faults.oracle import BOUND, Answer, Life, score_errors
from loadtest.faults.server_process import ServerProcess
from loadtest.faults.server_scene import saved_checkpoint, tell
from loadtest.faults.world import Person, random_events
from loadtest.load.messages import rank_message, rank_result
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_number, bar_table, headline
from loadtest.report.table import Part, Table
from mfalcon.errors import EngineFailure
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Floats

NOTES = (
    "good clients: one over gRPC and one over HTTP, each with a rank every `period` that is to be answered within a "
    "second, timed from when it was due; every score is compared with that of a cold forward",
    "added: p99 of good clients under the attack less that of the stretch without one just before it",
    "neighbour: that p99 while the same attack is made on another server of this machine, which takes its share of the "
    "cores as the attacked one does; what is added to that is the attacked server's own",
    "answers: of the attack, by code; closed: the server hung up; silent: it kept a connection for 90 s without a "
    "word; left, kept, left unread: the attacker asked for no answer",
    "leaks: answers that name a class, a module, a path of the server, or that an attack must not get",
    "memory, descriptors: of all processes of the server, before and 30 s at most after the attack, and the most of "
    "memory while it ran; in later rounds the same attacks are made once more on the same server, and memory is flat "
    "if these find what they need in what the first round has left",
)
GRPC_CODES = frozenset(
    {
        *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"),
        *("UNAVAILABLE", "UNIMPLEMENTED", "CANCELLED"),
    }
)
HTTP_CODES = frozenset(map(str, (200, 400, 404, 405, 408, 409, 413, 415, 422, 429, 431, 501, 503, 504)))
OTHER_ENDS = frozenset({"closed", "left", "kept", "left unread", "answered"})
ADDED_MS, GROWTH_MIB = 10.0, 64.0
_NUM_PEOPLE = 4
_SETTLE_TURNS = 60
_FLAGS = ("--threads", "1", "--microbatch", "64", "--kv-budget-mb", "64", "--drain-seconds", "1")
_QUICK = ("--http-header-timeout-s", "5", "--http-body-timeout-s", "5", "--request-timeout-ms", "10000")


@dataclass(frozen=True, slots=True)
class HostileOptions:
    """share: of the full number of each attack. frontends: of each server that is measured. quiet_s: of a stretch
    without an attack. period_s: between two ranks of a good client. only: attacks that have this in their name. tls:
    whether all of it is encrypted, and the handshake is attacked too. neighbour: whether each attack is first made on
    another server. rounds: how often all of them are made, one after the other.
    """

    share: float = 1.0
    frontends: tuple[int, ...] = (0, 2)
    quiet_s: float = 10.0
    period_s: float = 0.02
    only: str = ""
    tls: bool = False
    neighbour: bool = True
    rounds: int = 1

    @property
    def attacks(self) -> Mapping[str, int]:
        """Their names, and how often each is made in full."""
        every = ATTACKS | (TLS_ATTACKS if self.tls else {})
        return {name: count for name, (_, count) in every.items() if self.only in name}


@dataclass(frozen=True, slots=True)
class HostileRow:
    """One attack on one server. See NOTES. number: of the round, from 1. wrong, failed: answers to good clients.
    neighbour_p99_ms: NaN where none was attacked.
    """

    frontends: int
    number: int
    attack: str
    count: int
    seconds: float
    codes: dict[str, int]
    undocumented: list[str]
    leaks: list[str]
    asked: int
    wrong: int
    failed: dict[str, int]
    quiet_p99_ms: float
    neighbour_p99_ms: float
    p99_ms: float
    memory_before_mib: float
    memory_most_mib: float
    memory_after_mib: float
    descriptors_before: int
    descriptors_after: int


@dataclass(frozen=True, slots=True)
class HostileResult:
    """Everything that `mfalcon bench hostile` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    rows: tuple[HostileRow, ...]
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all processes of a server."""

    memory_mib: float
    descriptors: int


def usage(pid: int) -> Usage:
    """Of a process and those that it started."""
    pids = [pid]
    for number in pids:
        for children in Path(f"/proc/{number}/task").glob("*/children"):
            pids += map(int, children.read_text().split())
    memory = descriptors = 0
    for number in pids:
        try:
            resident = int(Path(f"/proc/{number}/statm").read_text().split()[1])
            descriptors += len(os.listdir(f"/proc/{number}/fd"))
        except OSError:  # it has just ended
            continue
        memory += resident * os.sysconf("SC_PAGE_SIZE")
    return Usage(memory / 2**20, descriptors)


def run(options: HostileOptions, progress: Callable[[str], None]) -> HostileResult:
    """Attack a server for each number of front-ends. Raises EngineFailure if one does not start, or ends."""
    torch.set_num_threads(1)
    machine, rows = this_machine(), list[HostileRow]()
    with tempfile.TemporaryDirectory(prefix="mfalcon-") as scratch:
        path, served = saved_checkpoint(Path(scratch))
        certificate: Path | None = None
        flags: tuple[str, ...] = (*_FLAGS, *_QUICK)
        if options.tls:
            certificate, key = certificate_in(Path(scratch))
            flags += ("--tls-cert-file", str(certificate), "--tls-key-file", str(key))
        for frontends in options.frontends:
            with ExitStack() as stack:
                server, *others = (
                    stack.enter_context(
                        ServerProcess(
                            path, Path(scratch), (*flags, "--frontends", str(frontends)), certificate=certificate
                        )
                    )
                    for _ in range(2 if options.neighbour else 1)
                )
                rows += asyncio.run(_attack_all(options, server, others, served, frontends, progress))
                if server.exit_code is not None:
                    raise EngineFailure(f"the server ended with {server.exit_code}: {server.written[-500:]}")
    return HostileResult("hostile", machine, commit(), NOTES, tuple(rows), bars(rows))


async def _attack_all(
    options: HostileOptions,
    server: ServerProcess,
    others: Sequence[ServerProcess],
    served: Checkpoint,
    frontends: int,
    progress: Callable[[str], None],
) -> list[HostileRow]:
    people = [Person(f"good-{number}", Life()) for number in range(_NUM_PEOPLE)]
    with ExitStack() as stack:
        stub = stack.enter_context(connected(server))
        for number, person in enumerate(people):
            tell(stub, person, random_events(number))
    good = GoodClients(server, people, _right_scores(server, served, people), options.period_s)
    rows = []
    async with good.asking():
        for number in range(1, options.rounds + 1):
            for name, whole in options.attacks.items():
                progress(f"{frontends} front-ends, round {number}: {name}")
                count = max(1, round(whole * options.share))
                rows.append(await _attack(options, server, others, good, (frontends, number), name, count))
    return rows


def _right_scores(server: ServerProcess, served: Checkpoint, people: Sequence[Person]) -> list[Floats]:
    """What the server answers, once a cold forward has confirmed it. Raises EngineFailure if it does not."""
    answers = []
    with connected(server) as stub:
        for at, person in enumerate(people):
            request = person.request(at)
            message = rank_message(request.user_id, request.candidates, request_time_ms=request.request_time_ms)
            scores = rank_result(stub.Rank(message, timeout=300)).task_scores
            where = person.user_id
            answers.append(
                Answer(where, person.life, person.life.size, request.request_time_ms, request.candidates, scores)
            )
    errors = score_errors(served, answers, threads=1)
    if (worst := max(errors.values())) > BOUND:
        raise EngineFailure(f"scores differ from a cold forward by {worst:g} before any attack")
    return [answer.task_scores for answer in answers]


async def _attack(
    options: HostileOptions,
    server: ServerProcess,
    others: Sequence[ServerProcess],
    good: GoodClients,
    place: tuple[int, int],
    name: str,
    count: int,
) -> HostileRow:
    """place: front-ends of the server, and the number of the round."""
    beside = float("nan")
    for other in others:
        tally = good.tally = Tally()
        process = await _attacking(other, name, count)
        await process.communicate()
        beside = tally.p99_ms
    quiet = good.tally = Tally()
    await asyncio.sleep(options.quiet_s)
    before = usage(server.pid)
    under = good.tally = Tally()
    began, most = time.monotonic(), before.memory_mib
    process = await _attacking(server, name, count)
    told = asyncio.create_task(process.communicate())
    while not told.done():
        await asyncio.wait((told,), timeout=0.2)
        most = max(most, usage(server.pid).memory_mib)
    seconds = time.monotonic() - began
    good.tally = Tally()
    after = await _settled(server.pid, before.descriptors)
    if process.returncode:
        raise EngineFailure(f"the attack {name!r} failed with {process.returncode}")
    heard = json.loads(told.result()[0])
    known = GRPC_CODES | HTTP_CODES | OTHER_ENDS
    return HostileRow(
        *place,
        name,
        count,
        seconds,
        heard["codes"],
        sorted(set(heard["codes"]) - known),
        heard["leaks"],
        len(under.seconds) + under.failed.total(),
        under.wrong,
        dict(under.failed),
        quiet.p99_ms,
        beside,
        under.p99_ms,
        before.memory_mib,
        most,
        after.memory_mib,
        before.descriptors,
        after.descriptors,
    )


async def _attacking(server: ServerProcess, name: str, count: int) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "loadtest.faults.attacks", name, server.grpc, server.http, str(count)]
    if server.certificate is not None:
        command.append(str(server.certificate))
    return await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)


async def _settled(pid: int, descriptors: int) -> Usage:
    """When descriptors are back, or at the end of a while."""
    for _ in range(_SETTLE_TURNS):
        if usage(pid).descriptors <= descriptors:
            break
        await asyncio.sleep(0.5)
    return usage(pid)


def bars(rows: Sequence[HostileRow]) -> tuple[Bar, ...]:
    """What is asked."""

    def worst(figure: Callable[[HostileRow], float]) -> tuple[float, str]:
        row = max(rows, key=figure)
        return figure(row), f"{row.attack}, {row.frontends} front-ends"

    since, grown = zip(
        *(_growth([row for row in rows if row.frontends == each]) for each in _frontends(rows)), strict=True
    )
    return (
        _most("kinds of undocumented answers", *worst(lambda row: len(row.undocumented)), 0),
        _most("answers that tell what they must not", *worst(lambda row: len(row.leaks)), 0),
        _most("wrong scores of good clients", *worst(lambda row: row.wrong), 0),
        _most("failed requests of good clients", *worst(lambda row: sum(row.failed.values())), 0),
        _most("p99 added to good clients, ms", *worst(lambda row: row.p99_ms - row.quiet_p99_ms), ADDED_MS),
        _most("p99 added to that beside an attacked neighbour, ms", *worst(added_by_server), ADDED_MS),
        Bar.most(f"memory grown from after {since[0]} to after the last, MiB", max(grown), GROWTH_MIB),
        _most("descriptors left open", *worst(lambda row: row.descriptors_after - row.descriptors_before), 0),
    )


def _growth(rows: Sequence[HostileRow]) -> tuple[str, float]:
    """Of one server, in MiB, since the end of the first round, where there are more; else since its first attack."""
    in_first = [row for row in rows if row.number == 1]
    since, name = (in_first[0], "the first attack") if len(in_first) == len(rows) else (in_first[-1], "the first round")
    return name, rows[-1].memory_after_mib - since.memory_after_mib


def _frontends(rows: Sequence[HostileRow]) -> list[int]:
    return list(dict.fromkeys(row.frontends for row in rows))


def added_by_server(row: HostileRow) -> float:
    """To the p99 of good clients, in ms, where it is known what the machine adds; else to that without an attack."""
    return row.p99_ms - (row.quiet_p99_ms if math.isnan(row.neighbour_p99_ms) else row.neighbour_p99_ms)


def _most(name: str, value: float, by: str, limit: float) -> Bar:
    return Bar.most(name, value, limit, by=by)


def page(result: HostileResult) -> Iterator[Part]:
    """A row for each attack."""
    yield "# Hostile clients"
    yield "`mfalcon bench hostile --tls --write docs/results/hostile.md` writes this page. Measured on:"
    yield headline(result.machine, result.commit)
    for frontends, number in dict.fromkeys((row.frontends, row.number) for row in result.rows):
        title = f"With {frontends} front-ends" if frontends else "One process"
        columns = (
            *("attack", "count", "s", "answers", "p99 ms before", "neighbour", "p99 ms", "wrong", "failed"),
            *("MiB before", "most", "after", "descriptors", "after"),
        )
        rows = [
            (
                *(row.attack, f"{row.count:,}", as_number(row.seconds)),
                ", ".join(f"{code} {count:,}" for code, count in sorted(row.codes.items())),
                *(as_number(row.quiet_p99_ms), as_number(row.neighbour_p99_ms), as_number(row.p99_ms), str(row.wrong)),
                ", ".join(f"{code} {count}" for code, count in row.failed.items()) or "0",
                *(as_number(row.memory_before_mib), as_number(row.memory_most_mib), as_number(row.memory_after_mib)),
                *(str(row.descriptors_before), str(row.descriptors_after)),
            )
            for row in result.rows
            if (row.frontends, row.number) == (frontends, number)
        ]
        yield Table(title if number == 1 else f"{title}, round {number}", columns, rows)
    leaks = [f"- {row.attack}: {leak}" for row in result.rows for leak in (*row.undocumented, *row.leaks)]
    if leaks:
        yield "\n".join(leaks)
    yield bar_table(result.bars)
    yield "\n".join(f"- {note}" for note in result.notes)
