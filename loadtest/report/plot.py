"""The benchmarks' results as pictures; needs the extra `plot`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from loadtest.bench.append import AppendResult
from loadtest.bench.dlrm_pairs import counted_ratio
from loadtest.bench.dlrm_ratio import PAPER, RatioResult
from loadtest.bench.score import PEER, ScoreResult
from loadtest.bench.state import StateResult
from loadtest.load.load_result import LoadResult
from loadtest.report.machine import Machine
from loadtest.report.timing import Cell
from mfalcon.errors import ConfigError

_REFUSED = "RESOURCE_EXHAUSTED"


def plot_score(result: ScoreResult, path: Path) -> None:
    """A row of panels for each shape, one for each n: fraction of the floor over m of every backend. Writes a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    panels, (rows, columns) = _panels(result.cells)
    figure = Figure(figsize=(4.2 * columns, 3.6 * rows), layout="constrained")
    for axes, ((shape, n), cells) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
        for backend in dict.fromkeys(cell.backend for cell in cells):
            of = [cell for cell in cells if cell.backend == backend]
            axes.semilogx([cell.m for cell in of], [cell.fraction for cell in of], "o-", label=backend)
        axes.set_xticks(*_ticks(cell.m for cell in cells))
        axes.set_xticks([], minor=True)
        axes.axhline(1, color="k", linestyle="--", label="floor")
        axes.set(title=f"{shape}, n={n}", xlabel="candidates", ylabel="floor / median", ylim=(0, 1.1))
        axes.legend(fontsize="small")
    figure.suptitle(_caption(result.machine, result.commit, result.dtype), fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def plot_latency(result: ScoreResult, path: Path) -> None:
    """A row of panels for each shape, one for each n: time over m, both logarithmic, of the fastest backend, of as many
    forwards as there are candidates in it, and of one masked forward, where that was measured. Writes a PNG.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    panels, (rows, columns) = _panels(result.cells)
    figure = Figure(figsize=(5.6 * columns, 4.2 * rows), layout="constrained")
    for axes, ((shape, n), cells) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
        of_backend = [
            [cell for cell in cells if cell.backend == one] for one in {cell.backend for cell in cells} - {PEER}
        ]
        cached = min(of_backend, key=lambda own: sum(cell.ms for cell in own))
        lines = {
            "one forward for each candidate": [(cell.m, cell.instead_ms) for cell in cached if cell.instead_ms],
            "one masked forward": [(cell.m, cell.ms) for cell in cells if cell.backend == PEER],
            "mfalcon, history cached": [(cell.m, cell.ms) for cell in cached],
        }
        for label, points in lines.items():
            if points:
                axes.loglog(*zip(*points, strict=True), "o-", label=label)
        axes.set_xticks(*_ticks(cell.m for cell in cells))
        axes.set_xticks([], minor=True)
        axes.set(title=f"{shape}, n={n}", xlabel="candidates", ylabel="ms")
        axes.legend(fontsize="small")
    figure.suptitle(_caption(result.machine, result.commit, result.dtype), fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def plot_append(result: AppendResult, path: Path) -> None:
    """A row of panels for each shape, one for each n: time over k of every backend, its prefill (dotted), and the
    floor. Writes a PNG.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    panels, (rows, columns) = _panels(result.cells)
    figure = Figure(figsize=(4.2 * columns, 3.6 * rows), layout="constrained")
    for axes, ((shape, n), cells) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels, strict=True):
        for index, backend in enumerate(dict.fromkeys(cell.backend for cell in cells)):
            appends = [cell for cell in cells if (cell.backend, cell.phase) == (backend, "append")]
            axes.loglog([cell.k for cell in appends], [cell.ms for cell in appends], "o-", label=backend)
            (prefill,) = (cell for cell in cells if (cell.backend, cell.phase) == (backend, "prefill"))
            axes.axhline(prefill.ms, color=f"C{index}", linestyle=":")
        axes.loglog([cell.k for cell in appends], [cell.floor_ms for cell in appends], "k--", label="floor")
        axes.set_xticks(*_ticks(cell.k for cell in appends))
        axes.set_xticks([], minor=True)
        axes.set(title=f"{shape}, n={n}", xlabel="new events (dotted: prefill of n)", ylabel="ms")
        axes.legend(fontsize="small")
    figure.suptitle(_caption(result.machine, result.commit, result.dtype), fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def plot_state(result: StateResult, path: Path) -> None:
    """One panel for each shape and network: time over n of encoding and of fetching each payload, with the crossovers
    (dotted). Writes a PNG.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    panels = list(dict.fromkeys((cell.shape, cell.network) for cell in result.cells))
    figure = Figure(figsize=(5 * len(panels), 4.4), layout="constrained")
    for axes, (shape, network) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        cells = [cell for cell in result.cells if (cell.shape, cell.network, cell.tier) == (shape, network, "redis")]
        payloads = list(dict.fromkeys(cell.payload for cell in cells))
        for index, payload in enumerate(payloads):
            fetched = [(cell.n, cell.fetch_ms.median_ms) for cell in cells if cell.payload == payload]
            axes.loglog(*zip(*fetched, strict=True), "o-", color=f"C{index}", label=f"fetch {payload}")
        encoded = [(cell.n, cell.recompute_ms.median_ms) for cell in cells if cell.payload == payloads[0]]
        axes.loglog(*zip(*encoded, strict=True), "ks-", label="encode again")
        acquired = [
            (cell.n, cell.acquire_ms.median_ms)
            for cell in result.cells
            if (cell.shape, cell.network, cell.payload) == (shape, network, payloads[0]) and cell.acquire_ms
        ]
        axes.loglog(*zip(*acquired, strict=True), "k--", label="find on the host")
        for at in result.crossovers:
            if (at.shape, at.network) == (shape, network) and at.measured:
                axes.axvline(at.measured, color=f"C{payloads.index(at.payload)}", linestyle=":")
        axes.set(title=f"{shape}, {network}", xlabel="events in the state", ylabel="ms")
        axes.legend(fontsize="small")
    figure.suptitle(_caption(result.machine, result.commit, result.dtype), fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def plot_dlrm(result: RatioResult, path: Path) -> None:
    """A panel for each DLRM: the rate of each ranker over its own, by candidates, cold (filled) and hit; counted as
    lines, the paper's as stars. Writes a PNG.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    dlrms = list(dict.fromkeys(row.pair.dlrm for row in result.rows))
    figure = Figure(figsize=(5.4 * len(dlrms), 4.4), layout="constrained")
    for axes, dlrm in zip(figure.subplots(1, len(dlrms), squeeze=False)[0], dlrms, strict=True):
        rows = [row for row in result.rows if row.pair.dlrm == dlrm]
        for index, pair in enumerate(dict.fromkeys(row.pair for row in rows)):
            of = sorted((row for row in rows if row.pair == pair), key=lambda row: row.m)
            most = 2 * of[-1].m
            along = [max(1, of[0].m // 2) * (most / max(1, of[0].m // 2)) ** (step / 40) for step in range(41)]
            axes.semilogx(along, [counted_ratio(pair, m) for m in along], color=f"C{index}", linewidth=1)
            if any(not row.claims for row in of):
                continue
            for ratios, mark in (([row.cold for row in of], "o"), ([row.hit for row in of], "^")):
                values = [ratio.median for ratio in ratios]
                off = [[r.median - r.least for r in ratios], [r.most - r.median for r in ratios]]
                label = f"{pair.shape}, n={pair.n:,}, cold" if mark == "o" else None
                face = f"C{index}" if mark == "o" else "none"
                axes.errorbar(
                    [row.m for row in of], values, off, fmt=mark, color=f"C{index}", mfc=face, capsize=3, label=label
                )
        if result.options.ratio == 285:
            axes.plot(list(PAPER), list(PAPER.values()), "k*", markersize=9, label="HSTU paper")
        axes.axhline(1, color="k", linestyle="--", linewidth=1)
        what = "candidates (lines: counted, cold; filled: cold; open: hit)"
        axes.set(title=f"DLRM {dlrm}", xlabel=what, ylabel="times the DLRM's rate", ylim=(0, None))
        axes.set_xticks(*_ticks(row.m for row in rows))
        axes.set_xticks([], minor=True)
        axes.legend(fontsize="small")
    figure.suptitle(_caption(result.machine, result.commit, result.options.dtype), fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def plot_load(results: Mapping[str, LoadResult], path: Path) -> None:
    """Goodput, and p99 of what was answered and of refusals (dotted), over the offered rate, of results by their
    labels. Writes a PNG.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    goodput, p99 = figure.subplots(1, 2)
    for index, (label, result) in enumerate(results.items()):
        mains = sorted((run.main for run in result.runs), key=lambda one: one.offered)
        offered = [one.offered for one in mains]
        goodput.plot(offered, [one.goodput for one in mains], "o-", color=f"C{index}", label=label)
        answered = [(one.offered, one.answered.p99_ms) for one in mains if one.answered]
        refused = [(one.offered, one.by_error[_REFUSED].p99_ms) for one in mains if _REFUSED in one.by_error]
        for points, style, what in ((answered, "o-", "answered"), (refused, "s:", "refused")):
            if points:
                p99.semilogy(*zip(*points, strict=True), style, color=f"C{index}", label=f"{label}, {what}")
    most = max((run.main.offered for result in results.values() for run in result.runs), default=1.0)
    goodput.plot((0, most), (0, most), "k--", label="offered")
    for deadline in {run.main.traffic.deadline_ms for result in results.values() for run in result.runs} - {0}:
        p99.axhline(deadline, color="k", linestyle="--", label=f"deadline {deadline} ms")
    goodput.set(xlabel="offered, requests/s", ylabel="right and in time, requests/s", ylim=(0, None))
    p99.set(xlabel="offered, requests/s", ylabel="p99, ms")
    for axes in (goodput, p99):
        axes.legend(fontsize="small")
    last = list(results.values())[-1]
    figure.suptitle(_caption(last.machine, last.commit, last.backend), fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def plot_watched(result: LoadResult, path: Path) -> None:
    """A panel for each figure of the last run that was watched, over time; slopes in the legends. Writes a PNG. Raises
    ConfigError if there is none.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    watched = [run.watched for run in result.runs if run.watched is not None]
    if not watched or not watched[-1].series:
        raise ConfigError("plot: no run was watched")
    minutes = [seconds / 60 for seconds in watched[-1].seconds]
    labels = list(dict.fromkeys(one.figure.label for one in watched[-1].series))
    figure = Figure(figsize=(4.8 * 3, 3.6 * -(-len(labels) // 3)), layout="constrained")
    for axes, label in zip(figure.subplots(-(-len(labels) // 3), 3, squeeze=False).flat, labels, strict=False):
        for one in watched[-1].series:
            if one.figure.label == label:
                values = [float("nan") if value is None else value for value in one.values]
                slope = one.slope and f": {one.slope.per_hour:+.2f}/h ({one.slope.low:+.2f} to {one.slope.high:+.2f})"
                axes.plot(minutes, values, linewidth=1, label=f"{one.of}{slope or ''}")
        axes.set(title=label, xlabel="minutes", ylim=(0, None))
        axes.legend(fontsize="x-small")
    figure.suptitle(_caption(result.machine, result.commit, result.backend), fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def _panels(cells: Sequence[Cell]) -> tuple[list[tuple[tuple[str, int], list[Cell]]], tuple[int, int]]:
    """The cells of each shape and n, and how many of both there are."""
    shapes, lengths = (list(dict.fromkeys(values)) for values in zip(*((c.shape, c.n) for c in cells), strict=True))
    keys = [(shape, n) for shape in shapes for n in lengths]
    of = [(key, [cell for cell in cells if (cell.shape, cell.n) == key]) for key in keys]
    return of, (len(shapes), len(lengths))


def _ticks(values: Iterable[int]) -> tuple[list[int], list[str]]:
    """Where something was measured, and its label."""
    marks = sorted(set(values))
    return marks, [str(mark) for mark in marks]


def _caption(machine: Machine, commit: str | None, dtype: str) -> str:
    return f"{machine.cpu}, {machine.threads} threads, {dtype}, commit {commit or 'unknown'}"
