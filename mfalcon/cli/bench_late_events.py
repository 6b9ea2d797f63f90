"""`mfalcon bench late-events`: a stream that is not in order, inserted, clamped and rejected."""

from dataclasses import replace
from typing import Annotated

import typer

from loadtest.bench import late_events
from loadtest.bench.shapes import SHAPES
from loadtest.report.pages import late_events_page
from mfalcon.cli.bench_output import QuickOption, ThreadsOption, progress, show
from mfalcon.cli.output import JsonOption
from mfalcon.cores import owned_cores


def bench_late_events(
    shape: Annotated[str, typer.Option(help=f"Shape to measure ({', '.join(SHAPES)}).")] = "tiny",
    events: Annotated[int | None, typer.Option(min=100, help="Events of the stream.")] = None,
    late: Annotated[float, typer.Option(min=0, max=1, help="Share of them that comes late.")] = 0.01,
    delay: Annotated[float, typer.Option(min=0, help="The longest delay, in seconds.")] = 600.0,
    threads: ThreadsOption = 0,
    quick: QuickOption = False,
    json_output: JsonOption = False,
) -> None:
    """What late events become by each policy, and the tokens that inserting them costs; exit code 1 if a bar falls."""
    base = late_events.QUICK if quick else late_events.LateOptions()
    options = replace(
        base,
        shape=shape,
        num_events=events or base.num_events,
        late_share=late,
        max_delay_s=delay,
        threads=threads or owned_cores(),
    )
    result = late_events.run(options, progress)
    show(result, late_events_page, json_output)
    if any(bar.holds is False for bar in result.bars):
        raise typer.Exit(1)
