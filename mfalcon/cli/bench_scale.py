"""`mfalcon bench scale` and its kin: measure what requests cost, simulate a fleet that pays that, check the simulation
on real replicas, and work out what many users need. They need the extra `loadtest`.
"""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.report.table import as_text
from mfalcon.cli.bench_output import progress, result_file
from mfalcon.errors import ConfigError

COSTS = Path("loadtest/results/scale-costs.json")
CHECK = Path("loadtest/results/scale-check.json")
SIMULATED = Path("loadtest/results/scale-simulated.json")
PAGE = Path("docs/scaling.md")
MOST_VISITS = 10**7
"""Of a simulation: their times are in memory at once, and so is what became of them."""

CostsOption = Annotated[Path, typer.Option("--costs", help="What requests cost, from `mfalcon bench scale-costs`.")]
CheckpointArgument = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.")]


def scale(
    costs: CostsOption = COSTS,
    scenario: Annotated[str, typer.Option(help="steady, kill, deploy or hot.")] = "steady",
    replicas: Annotated[int, typer.Option(min=1, max=1_000, help="Replicas, each computing on one core.")] = 4,
    rate: Annotated[float, typer.Option(min=0.001, max=100_000, help="Visits a second.")] = 40.0,
    seconds: Annotated[float, typer.Option(min=1, max=10**6, help="Simulated time.")] = 240.0,
    users: Annotated[int, typer.Option(min=1, max=10**7, help="Users, by Zipf's law.")] = 10_000,
    history: Annotated[
        int, typer.Option(min=64, max=10**6, help="Longest history; the shortest is 64 events.")
    ] = 2_048,
    candidates: Annotated[int, typer.Option(min=1, max=10**6, help="Candidates of a request.")] = 500,
    pool_mb: Annotated[float, typer.Option(min=0, help="Memory of a replica for states, in MiB.")] = 1_024.0,
    redis_mb: Annotated[float, typer.Option(min=0, help="Memory of Redis for states, in MiB; 0: none.")] = 4_096.0,
    bound: Annotated[
        float, typer.Option(min=1, help="Most requests under way at a replica, as a multiple of its share.")
    ] = 1.5,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same run.")] = 0,
) -> None:
    """Simulate N replicas with affinity: what they answer, where states are found, and what a fault moves."""
    from loadtest.scale.acts import Visits  # noqa: PLC0415 an optional dependency
    from loadtest.scale.costs import load_costs  # noqa: PLC0415
    from loadtest.scale.fleet import FleetOptions  # noqa: PLC0415
    from loadtest.scale.scenario import named, run, simulation_page  # noqa: PLC0415

    if rate * seconds > MOST_VISITS:
        raise ConfigError(f"rate, seconds: got {rate * seconds:,.0f} visits in all, must be at most {MOST_VISITS:,}")
    fleet = FleetOptions(replicas, pool_mb * 2**20, redis_mb * 2**20 if redis_mb else None, bound)
    visits = Visits(rate, seconds, users, max_history=history, candidates=candidates, seed=seed)
    if scenario == "hot":
        visits = visits.with_hot_user()
    typer.echo(as_text(simulation_page(run(named(scenario, fleet, visits), load_costs(costs)), load_costs(costs))))


def scale_costs(
    checkpoint: CheckpointArgument,
    write: Annotated[Path, typer.Option(help="Where to write them, as JSON.", callback=result_file)],
    candidates: Annotated[int, typer.Option(min=9, help="Larger number of candidates of a measured rank.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all cells; medians count.")] = 3,
    cell_seconds: Annotated[float, typer.Option(min=0.05, help="CPU time of a cell and round.")] = 0.5,
) -> None:
    """Measure what the parts of a request cost on this machine, in CPU time, beside a busy neighbour."""
    from loadtest.scale.calibrate import CalibrateOptions, calibrate  # noqa: PLC0415 an optional dependency
    from loadtest.scale.costs import as_json  # noqa: PLC0415

    options = CalibrateOptions(candidates=candidates, rounds=rounds, cell_s=cell_seconds)
    costs, notes = calibrate(checkpoint, options, progress)
    write.write_text(as_json(costs))
    typer.echo("\n".join(notes))


def scale_check(
    checkpoint: CheckpointArgument,
    costs: CostsOption = COSTS,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 3,
    only: Annotated[str | None, typer.Option(help="Only cases that have this in their name.")] = None,
    write: Annotated[
        Path | None, typer.Option(help="Also write the figures here, as JSON.", callback=result_file)
    ] = None,
) -> None:
    """Play a trace on four real replicas and in the simulation; exit code 1 if they differ by more than 15%."""
    from loadtest.scale.check import CASES, as_json, check, check_page  # noqa: PLC0415 an optional dependency
    from loadtest.scale.costs import load_costs  # noqa: PLC0415

    cases = {name: options for name, options in CASES.items() if only is None or only in name}
    if not cases:
        raise ConfigError(f"--only: got {only!r}, must be in one of: {', '.join(CASES)}")
    result = check(checkpoint, load_costs(costs), cases, runs, progress)
    if write is not None:
        write.write_text(as_json(result))
    typer.echo(as_text(check_page(result)))
    if not all(case.holds for case in result.cases):
        raise typer.Exit(1)


def scale_page(
    costs: CostsOption = COSTS,
    page: Annotated[Path, typer.Option(help="Page whose tables are made again.")] = PAGE,
    simulate: Annotated[bool, typer.Option("--simulate", help="Simulate again what the page shows: minutes.")] = False,
) -> None:
    """Write the tables of docs/scaling.md from the costs and the check that lie in loadtest/results."""
    from loadtest.scale.costs import load_costs  # noqa: PLC0415
    from loadtest.scale.page import rewritten  # noqa: PLC0415 an optional dependency
    from loadtest.scale.simulated import as_json, simulate_all  # noqa: PLC0415

    if simulate:
        SIMULATED.write_text(as_json(simulate_all(load_costs(costs), progress)))
    try:
        page.write_text(rewritten(page.read_text(encoding="utf-8"), costs, CHECK, SIMULATED), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--page: {page} is no page of text that can be written: {error}") from None
