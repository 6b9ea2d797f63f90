"""`mfalcon bench`: time the kernels and the service. Tables for people, `--json` for machines, progress on stderr."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from loadtest.bench import append as bench_append
from loadtest.bench import overhead
from loadtest.bench import score as bench_score
from loadtest.bench.append import AppendOptions
from loadtest.bench.overhead import OverheadOptions
from loadtest.bench.score import ScoreOptions
from loadtest.bench.shapes import DTYPES, SHAPES
from loadtest.report import plot as plots
from loadtest.report.pages import append_page, overhead_page, read_page, score_page
from loadtest.report.table import as_markdown
from mfalcon.backends.choice import NAMES
from mfalcon.cli import bench_state
from mfalcon.cli.bench_appends import bench_appends
from mfalcon.cli.bench_backends import bench_backend_quality
from mfalcon.cli.bench_capture import bench_capture
from mfalcon.cli.bench_counting import bench_counting
from mfalcon.cli.bench_damaged import bench_damaged
from mfalcon.cli.bench_dlrm import bench_dlrm
from mfalcon.cli.bench_dlrm_serving import bench_dlrm_serving
from mfalcon.cli.bench_embeddings import bench_embeddings
from mfalcon.cli.bench_everything import bench_everything
from mfalcon.cli.bench_faults import bench_faults
from mfalcon.cli.bench_gpu import bench_kernels, score_on_device
from mfalcon.cli.bench_graph import bench_graph, bench_graph_quality
from mfalcon.cli.bench_hostile import bench_hostile
from mfalcon.cli.bench_ingest import bench_ingest
from mfalcon.cli.bench_items import bench_items
from mfalcon.cli.bench_late_events import bench_late_events
from mfalcon.cli.bench_log import bench_log
from mfalcon.cli.bench_lum import bench_lum, bench_lum_features
from mfalcon.cli.bench_merge import bench_merge
from mfalcon.cli.bench_output import PlotOption, QuickOption, ThreadsOption, picture_file, progress, show
from mfalcon.cli.bench_reach import bench_reach, bench_reach_quality
from mfalcon.cli.bench_reload import bench_reload
from mfalcon.cli.bench_replay import bench_replay
from mfalcon.cli.bench_rerank import bench_rerank
from mfalcon.cli.bench_saturation import bench_saturation
from mfalcon.cli.bench_scale import scale, scale_check, scale_costs, scale_page
from mfalcon.cli.bench_serve import bench_serve
from mfalcon.cli.bench_storm import bench_storm
from mfalcon.cli.bench_wire import bench_wire
from mfalcon.cli.output import JsonOption
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError

app = typer.Typer(help="Time the kernels and the service.", no_args_is_help=True)

_SHAPE_HELP = f"Shape to measure ({', '.join(SHAPES)}); repeat for more."
_BACKEND_HELP = f"Backend to measure ({', '.join(NAMES)}); repeat for more. If not given: all that run here."
_DEVICE_HELP = "cpu, or cuda for whole stacks in Triton's kernels (then --shape is dlrm-v3 or nvidia)."

ShapeOption = Annotated[list[str] | None, typer.Option("--shape", help=_SHAPE_HELP)]
HistoryOption = Annotated[list[int] | None, typer.Option("--n", min=1, max=8192, help="History length; repeatable.")]
BackendOption = Annotated[list[str] | None, typer.Option("--backend", help=_BACKEND_HELP)]
DtypeOption = Annotated[str, typer.Option(help=f"What to compute in: {', '.join(DTYPES)}.")]
SecondsOption = Annotated[float | None, typer.Option(min=0, help="Time to spend on repeating each cell.")]
BusyOption = Annotated[bool, typer.Option("--busy", help="Measure each cell beside a busy process too.")]


app.command("serve")(bench_serve)
app.command("saturation")(bench_saturation)
app.command("backend-quality")(bench_backend_quality)
app.command("storm")(bench_storm)
app.command("lum")(bench_lum)
app.command("lum-features")(bench_lum_features)
app.command("damaged")(bench_damaged)
app.command("hostile")(bench_hostile)
app.command("log")(bench_log)
app.command("items")(bench_items)
app.command("reach")(bench_reach)
app.command("reach-quality")(bench_reach_quality)
app.command("reload")(bench_reload)
app.command("replay")(bench_replay)
app.command("rerank")(bench_rerank)
app.command("embeddings")(bench_embeddings)
app.command("dlrm")(bench_dlrm)
app.command("dlrm-serving")(bench_dlrm_serving)
app.command("merge")(bench_merge)
app.command("capture")(bench_capture)
app.command("counting")(bench_counting)
app.command("ingest")(bench_ingest)
app.command("wire")(bench_wire)
app.command("late-events")(bench_late_events)
app.command("state")(bench_state.state)
app.command("state-quality")(bench_state.quality)
app.command("everything")(bench_everything)
app.command("faults")(bench_faults)
app.command("appends")(bench_appends)
app.command("graph")(bench_graph)
app.command("graph-quality")(bench_graph_quality)
app.command("kernels")(bench_kernels)
app.command("scale")(scale)
app.command("scale-costs")(scale_costs)
app.command("scale-check")(scale_check)
app.command("scale-page")(scale_page)


@app.callback()
def root() -> None:
    """Time the kernels and the service."""


@app.command("score")
def score(
    shape: ShapeOption = None,
    n: HistoryOption = None,
    m: Annotated[list[int] | None, typer.Option("--m", min=1, help="Number of candidates; repeatable.")] = None,
    backend: BackendOption = None,
    microbatch: Annotated[list[int] | None, typer.Option(min=1, help="Microbatch to try; repeatable.")] = None,
    dtype: DtypeOption = "float32",
    seconds: SecondsOption = None,
    busy: BusyOption = False,
    peer: Annotated[bool, typer.Option("--peer", help="Also one dense masked forward in plain torch.")] = False,
    masked_gib: Annotated[
        float, typer.Option(min=0, help="Skip the peer where it needs more memory than this.")
    ] = ScoreOptions().masked_gib,
    threads: ThreadsOption = 0,
    quick: QuickOption = False,
    json_output: JsonOption = False,
    plot: PlotOption = None,
    plot_latency: Annotated[
        Path | None, typer.Option(help="Also draw milliseconds over candidates.", callback=picture_file)
    ] = None,
    device: Annotated[str, typer.Option(help=_DEVICE_HELP)] = "cpu",
) -> None:
    """Cached scoring on every backend, against the counted floor, one forward per candidate and a dense forward."""
    if device != "cpu":
        if n or m or backend or microbatch or busy or peer or plot or plot_latency or dtype != "float32":
            raise ConfigError("--device: only --shape, --seconds, --quick and --json go with it")
        score_on_device(device, shape or [], seconds, quick=quick, json_output=json_output)
        return
    base = bench_score.QUICK if quick else ScoreOptions()
    options = replace(
        base,
        shapes=tuple(shape or base.shapes),
        histories=tuple(n or base.histories),
        candidates=tuple(m or base.candidates),
        backends=tuple(backend or base.backends),
        microbatches=tuple(microbatch or base.microbatches),
        dtype=dtype,
        seconds=base.seconds if seconds is None else seconds,
        busy=busy,
        peer=peer,
        masked_gib=masked_gib,
    )
    torch.set_num_threads(threads or owned_cores())
    result = bench_score.run(options, progress)
    if plot is not None:
        plots.plot_score(result, plot)
    if plot_latency is not None:
        plots.plot_latency(result, plot_latency)
    show(result, score_page, json_output)


@app.command("append")
def append(
    shape: ShapeOption = None,
    n: HistoryOption = None,
    k: Annotated[list[int] | None, typer.Option("--k", min=1, help="Number of new events; repeatable.")] = None,
    backend: BackendOption = None,
    dtype: DtypeOption = "float32",
    seconds: SecondsOption = None,
    busy: BusyOption = False,
    threads: ThreadsOption = 0,
    quick: QuickOption = False,
    json_output: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Prefill, and append of new events to a KV state, on every backend and against the counted floor."""
    base = bench_append.QUICK if quick else AppendOptions()
    options = replace(
        base,
        shapes=tuple(shape or base.shapes),
        histories=tuple(n or base.histories),
        events=tuple(k or base.events),
        backends=tuple(backend or base.backends),
        dtype=dtype,
        seconds=base.seconds if seconds is None else seconds,
        busy=busy,
    )
    torch.set_num_threads(threads or owned_cores())
    result = bench_append.run(options, progress)
    if plot is not None:
        plots.plot_append(result, plot)
    show(result, append_page, json_output)


@app.command("overhead")
def service_overhead(
    target: Annotated[str, typer.Option(help="HOST:PORT of a running server's gRPC.")] = OverheadOptions().target,
    m: Annotated[int, typer.Option("--m", min=1, help="Number of candidates.")] = OverheadOptions().num_candidates,
    calls: Annotated[int, typer.Option(min=1, help="Calls to measure.")] = OverheadOptions().num_calls,
    events: Annotated[int, typer.Option(min=0, help="Length of the user's history.")] = OverheadOptions().num_events,
    items: Annotated[int, typer.Option(min=1, help="Draw item ids from 1 to this.")] = OverheadOptions().num_items,
    json_output: JsonOption = False,
) -> None:
    """What gRPC and the service add to the engine's time: one client, one user, state hit."""
    options = OverheadOptions(target=target, num_candidates=m, num_calls=calls, num_events=events, num_items=items)
    result = overhead.run(options, progress)
    show(result, overhead_page, json_output)


@app.command("tables")
def tables(
    paths: Annotated[list[Path], typer.Argument(metavar="RESULT...", help="Files that --json wrote.")],
) -> None:
    """Results of score, append, state and state-quality as Markdown tables."""
    for path in paths:
        typer.echo(as_markdown(read_page(path)) + "\n")
