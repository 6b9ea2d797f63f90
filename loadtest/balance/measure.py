"""Four real replicas on one Redis behind each balancer: who moves, what is lost, what is warm; every score checked.

python -m loadtest.balance.measure --write docs/results/balance.md
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from loadtest.balance.balancer import Kind, binary
from loadtest.balance.group import group
from loadtest.balance.ranks import Users
from loadtest.balance.scenes import Effort, Outcome, Stage
from loadtest.bench.some_checkpoint import some_checkpoint
from loadtest.faults.oracle import BOUND, score_errors
from loadtest.report.machine import commit, this_machine
from loadtest.report.result import headline
from loadtest.report.table import Part, Table, as_markdown, as_text
from mfalcon.models import checkpoint

_REPLICAS = 4
_FLAGS = ("--threads", "1", "--kv-budget-mb", "256", "--drain-linger-s", "3", "--drain-seconds", "5")
_MADE = """\
`python -m loadtest.balance.measure --write docs/results/balance.md` writes this page: four replicas of one checkpoint
on one Redis behind the real balancers with the configurations in `deploy/`, over gRPC, all on one machine. Every score
was checked against a cold forward. Measured on:"""
_READ = """\
Users rank by turns, each with a history of their own, and their client tries once. Tries are those of the balancer,
from its log. Hits are answers whose state was found in memory or in Redis. The p99 is that before anything happens, and
slow seconds are those after it whose p99 is more than twice that; replicas, balancer, Redis and clients share the
cores, so a replica that starts slows all others down. Moved are users with another replica than before: of all, and of
those whose replica lived."""


@dataclass(frozen=True, slots=True)
class Row:
    """A scene behind a balancer."""

    kind: Kind
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Checked:
    """Answers of one balancer's scenes that differ in a bit, how many of them are wrong, and the worst difference."""

    kind: Kind
    num_distinct: int
    num_wrong: int
    worst: float


def run(path: Path, kinds: Sequence[Kind], effort: Effort) -> tuple[list[Row], list[Checked]]:
    """All scenes behind each of the balancers."""
    loaded = checkpoint.load(path, torch.float32)
    rows, checks = list[Row](), list[Checked]()

    def keep(kind: Kind, *outcomes: Outcome) -> None:
        for outcome in outcomes:
            rows.append(Row(kind, outcome))
            print(f"{kind.value}: {outcome}", file=sys.stderr, flush=True)

    def play(kind: Kind, *, hands_over: bool = True) -> None:
        now_ms = time.time_ns() // 1_000_000
        users = Users(effort.num_users, loaded.items.item_id, effort.num_events, effort.num_candidates, now_ms)
        flags = [*_FLAGS]
        if not hands_over:
            flags += ["--handover-s", "0"]
        if kind is Kind.NGINX:
            flags += ["--grpc-listen", "ready"]
        with group(path, _REPLICAS, flags, kind) as running:
            users.write(running.replicas[0].grpc)
            stage = Stage(running, users, effort)
            stage.warm()
            if hands_over:
                keep(kind, stage.sticks())
                keep(kind, stage.hot_user())
                keep(kind, *stage.killed())
                keep(kind, stage.frozen())
                keep(kind, stage.balancer_restarted())
            how = "" if hands_over else " without hand-over"
            keep(kind, stage.rolling_restart(f"rolling restart{how}"))
            if kind is Kind.ENVOY:
                keep(kind, stage.rolling_restart(f"the same{how}, Redis had lost all states", evicted=True))
        torch.set_num_threads(1)
        errors = list(score_errors(loaded, users.answers, 1).values())
        checks.append(Checked(kind, len(errors), sum(error > BOUND for error in errors), max(errors)))

    for kind in kinds:
        play(kind)
    if Kind.ENVOY in kinds:
        play(Kind.ENVOY, hands_over=False)
    return rows, checks


def page(rows: Sequence[Row], checks: Sequence[Checked], effort: Effort) -> Iterator[Part]:
    """What docs/results/balance.md holds."""
    yield _READ
    yield (
        f"{effort.num_users} users of {effort.num_events} events, {effort.num_candidates} candidates, "
        f"{effort.rate:g} ranks a second."
    )
    columns = [
        "balancer",
        "what happens",
        "ranks",
        "failed",
        "most tries",
        "hits",
        "p99, ms",
        "slow, s",
        "moved",
        "moved of the living",
        "besides",
    ]
    yield Table("", columns, [_cells(row) for row in rows])
    yield Table(
        "Distinct answers held against the oracle:",
        ["balancer", "answers", "wrong", "worst difference"],
        [[check.kind.value, str(check.num_distinct), str(check.num_wrong), f"{check.worst:.1e}"] for check in checks],
    )


def _cells(row: Row) -> list[str]:
    one = row.outcome
    failed = ", ".join(f"{code} {number}" for code, number in one.failed.items()) or "0"
    moved = ["-" if part is None else f"{part:.1%}" for part in (one.moved, one.moved_living)]
    hits = f"{one.hits:.1%}"
    return [
        row.kind.value,
        one.scene,
        str(one.num_calls),
        failed,
        str(one.most_tries),
        hits,
        f"{one.p99_ms:.0f}",
        str(one.slow_s),
        *moved,
        one.besides or "-",
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Replicas behind real balancers.")
    parser.add_argument("--checkpoint", type=Path, help="to serve; the demo's, or random weights where it is not there")
    parser.add_argument("--only", choices=[kind.name.lower() for kind in Kind], action="append")
    parser.add_argument("--seconds", type=float, default=Effort().seconds, help="of each phase")
    parser.add_argument("--rate", type=float, default=Effort().rate, help="ranks a second")
    parser.add_argument("--users", type=int, default=Effort().num_users)
    parser.add_argument("--write", type=Path, help="the page")
    given = parser.parse_args()
    kinds = [kind for kind in Kind if given.only is None or kind.name.lower() in given.only]
    if missing := [kind.value for kind in kinds if binary(kind) is None]:
        raise SystemExit(f"not installed: {', '.join(missing)}; see docs/load-balancers.md")
    machine, at = this_machine(), commit()
    effort = Effort(num_users=given.users, rate=given.rate, seconds=given.seconds)
    with some_checkpoint(given.checkpoint) as path:
        rows, checks = run(path, kinds, effort)
    parts = list(page(rows, checks, effort))
    print(as_text(parts))
    if given.write is not None:
        made = f"# Load balancers, measured\n\n{_MADE}\n{headline(machine, at)}\n\n"
        given.write.write_text(made + as_markdown(parts) + "\n")


if __name__ == "__main__":
    main()
