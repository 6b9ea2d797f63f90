"""`mfalcon replay --capture`: real traffic, played again through a checkpoint in this process, and what moved."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from mfalcon.backends.select import device_named, use_device
from mfalcon.capture.reader import Captured, ReadCounts, find_files, find_keys, read_captures
from mfalcon.cli.replay_ensemble import read_ensemble
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from mfalcon.replay.compare import Comparison
from mfalcon.replay.player import PlayedMerge, Player, PlayerOptions
from mfalcon.replay.report import Report, replay

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class CaptureReplay:
    """What to play. captures: files or directories. keys: the key file, None for the one beside each file. model: of
    whose requests, "" for all. most: requests, 0 for all. most_worst: requests to list.
    """

    captures: Sequence[Path]
    checkpoint: Path
    against: Path | None = None
    keys: Path | None = None
    model: str = ""
    most: int = 0
    most_worst: int = 10
    threads: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    backend: str = "auto"
    kv_budget_mb: int = 1_024


def replay_capture(wish: CaptureReplay) -> Report:
    """Play captured requests. Raises DataError for captures, CheckpointError and ConfigError for checkpoints that
    cannot be used.
    """
    if wish.dtype not in DTYPES:
        raise ConfigError(f"--dtype: got {wish.dtype!r}, must be one of {', '.join(DTYPES)}")
    files = find_files(wish.captures)
    keys = find_keys(files, wish.keys)
    counts = ReadCounts()
    device = device_named(wish.device, "--device")
    use_device(device)
    with ExitStack() as stack:
        player = _player(wish.checkpoint, wish, str(device))
        stack.callback(player.close)
        against = None
        if wish.against is not None:
            against = _player(wish.against, wish, str(device))
            stack.callback(against.close)
        requests = _chosen(read_captures(files, keys, counts), wish)
        with Progress(
            SpinnerColumn(),
            TextColumn("replaying, {task.completed:,.0f} requests"),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            task = progress.add_task("replaying")
            report = replay(
                _counted(requests, lambda: progress.advance(task)), counts, player, against, wish.most_worst
            )
    if not report.num:
        of_model = f" of model {wish.model}" if wish.model else ""
        raise ConfigError(f"--capture: there is no request{of_model} that can be read: {unread(counts) or 'no frames'}")
    if report.captured is None and report.moved is None:
        raise ConfigError("--against: must be given where the captured scores cannot be compared with: there are none")
    return report


def _counted(requests: Iterator[Captured], advance: Callable[[], None]) -> Iterator[Captured]:
    for captured in requests:
        advance()
        yield captured


def _chosen(requests: Iterator[Captured], wish: CaptureReplay) -> Iterator[Captured]:
    of_model = (one for one in requests if not wish.model or one.raw.model == wish.model)
    return islice(of_model, wish.most) if wish.most else of_model


def _player(path: Path, wish: CaptureReplay, device: str) -> Player:
    """A checkpoint, or the ensemble of a server's TOML file."""
    options = PlayerOptions(
        threads=wish.threads or owned_cores(),
        backend=wish.backend,
        kv_budget_bytes=wish.kv_budget_mb << 20,
    )
    if path.suffix == ".toml":
        served = read_ensemble(path, DTYPES[wish.dtype], device)
        return Player(served.members, options, PlayedMerge(served.name, served.merge, served.weights))
    return Player({"": checkpoint.load(path, DTYPES[wish.dtype], device)}, options)


def unread(counts: ReadCounts) -> str:
    """What could not be read, in words; "" if all could."""
    damage = counts.damage
    parts = [
        (counts.locked, "of users whose keys are deleted or not here"),
        (counts.forged, "that are not authentic"),
        (counts.no_history, "whose history lay in what cannot be read"),
        (counts.unfit, "that say what cannot be"),
        (damage.frames, "damaged"),
        (damage.gaps, "gaps where no frame begins"),
        (damage.cut_bytes, "bytes at the end of files, cut short"),
        (len(counts.refused), "files refused"),
    ]
    return ", ".join(f"{num:,} {what}" for num, what in parts if num)


def show(report: Report, console: Console) -> None:
    """For people."""
    told = report.checkpoint
    console.print(
        f"{report.num:,} captured requests, answered by {', '.join(sorted(report.versions))}, played by "
        f"{told.name} {told.version} ({told.backend})"
        + ("" if report.against is None else f" and {report.against.name} {report.against.version}")
    )
    if missing := unread(report.counts):
        console.print(f"not read: {missing}")
    same = report.same
    if same.num:
        promise = "which law 7 promises" if told.is_exact else f"the bound here is {told.bound:.0e}"
        console.print(
            f"of the same version and kernel {same.num:,}: {same.num_equal:,} equal to the bit, worst error "
            f"{same.worst_error:.1e}; {promise}"
        )
    for title, comparison in (
        ("captured against checkpoint", report.captured),
        ("checkpoint against the other", report.moved),
    ):
        if comparison is not None and comparison.all.num:
            console.print(*_tables(title, comparison))
    console.print(_latencies(report))
    for why, num in report.failed.items():
        console.print(f"{num:,} without an answer or a comparison: {why}")
    if report.unread:
        console.print(f"{report.unread:,} context values that the checkpoint has no code for were left out")
    if report.without_counters:
        console.print(f"{report.without_counters:,} requests without the counters that the checkpoint reads")
    worst = report.moved or report.captured
    if worst is not None and (rows := worst.told()["worst"]):
        assert isinstance(rows, list)
        console.print("requests that moved most")
        for line in _worst(rows):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _tables(title: str, comparison: Comparison) -> Iterator[Table]:
    """All requests, by length of history and by tier; then each task of them. 80 columns hold every figure."""
    parts = [("all", comparison.all)]
    parts += [(f"history {name}", part) for name, part in comparison.by_length.items()]
    parts += [(f"tier {name}", part) for name, part in sorted(comparison.by_tier.items())]
    table = Table("requests", title=title)
    tasks = Table("requests", "task", title=f"{title}, by task")
    for name in ("number", "equal", "top 1 changed", "top 10 overlap"):
        table.add_column(name, justify="right")
    for name in ("Spearman", "p1", "mean error", "max error"):
        tasks.add_column(name, justify="right")
    for name, part in parts:
        changed = f"{part.num_top_changed / part.num:.1%}"
        table.add_row(name, f"{part.num:,}", f"{part.num_equal:,}", changed, f"{part.overlap / part.num:.3f}")
        told = part.told(comparison.tasks)["tasks"]
        assert isinstance(told, dict)
        for task, numbers in told.items():
            ranks = (
                "-" if rank is None else f"{rank:.4f}" for rank in (numbers["spearman_mean"], numbers["spearman_p1"])
            )
            errors = (f"{error:.2g}" for error in (numbers["mean_abs_error"], numbers["max_abs_error"]))
            tasks.add_row(name, task, *ranks, *errors)
    yield table
    yield tasks


def _latencies(report: Report) -> Table:
    table = Table(title="computing a request, ms (without waiting)")
    for name in ("by", "p50", "p90", "p99"):
        table.add_column(name, justify="left" if name == "by" else "right")
    told = report.told()["latency"]
    assert isinstance(told, dict)
    for name, numbers in told.items():
        table.add_row(name, *(f"{numbers[key]:.2f}" for key in ("p50_ms", "p90_ms", "p99_ms")))
    return table


def _worst(rows: list[dict[str, object]]) -> Iterator[str]:
    """A line each, not a table: a narrow terminal would cut the ids by which a request is found in the logs."""
    for row in rows:
        told = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items())
        yield "  ".join(told)
