"""The benchmarks' results as pictures; needs the extra `plot`."""

from pathlib import Path

from loadtest.bench_append import AppendResult
from loadtest.bench_score import ScoreResult
from loadtest.bench_state import StateResult
from loadtest.machine import Machine


def plot_score(result: ScoreResult, path: Path) -> None:
    """One panel for each shape and n: time over m of the three ways to score, and the floor. Writes a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    panels = list(dict.fromkeys((cell.shape, cell.n) for cell in result.cells))
    figure = Figure(figsize=(4.5 * len(panels), 4.2), layout="constrained")
    for axes, (shape, n) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        cells = [cell for cell in result.cells if (cell.shape, cell.n) == (shape, n)]
        masked = [(cell.m, cell.masked_ms.median_ms) for cell in cells if cell.masked_ms]
        lines = (
            ("one forward per candidate (scaled)", [(cell.m, cell.per_candidate_total_ms) for cell in cells], "o-"),
            ("one masked forward", masked, "s-"),
            ("cached scoring", [(cell.m, cell.cached_ms.median_ms) for cell in cells], "D-"),
            ("floor", [(cell.m, cell.floor_ms) for cell in cells], "k--"),
        )
        for label, points, style in lines:
            if points:
                axes.loglog(*zip(*points, strict=True), style, label=label)
        axes.set(title=f"{shape}, n={n}", xlabel="candidates", ylabel="ms")
        axes.legend(fontsize="small")
    figure.suptitle(_caption(result.machine, result.commit, result.dtype), fontsize="small")
    figure.savefig(path, format="png", dpi=120)


def plot_append(result: AppendResult, path: Path) -> None:
    """One panel for each shape: time over n of each append and of prefill. Writes a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    shapes = list(dict.fromkeys(cell.shape for cell in result.cells))
    figure = Figure(figsize=(5 * len(shapes), 4.2), layout="constrained")
    for axes, shape in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes, strict=True):
        cells = [cell for cell in result.cells if cell.shape == shape]
        for k in dict.fromkeys(cell.k for cell in cells):
            points = [(cell.n, cell.append_ms.median_ms) for cell in cells if cell.k == k]
            axes.loglog(*zip(*points, strict=True), "o-", label=f"append {k}")
        prefill = [(cell.n, cell.prefill_ms.median_ms) for cell in cells if cell.k == cells[0].k]
        axes.loglog(*zip(*prefill, strict=True), "s-", label="prefill")
        axes.set(title=shape, xlabel="events in the state", ylabel="ms")
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


def _caption(machine: Machine, commit: str | None, dtype: str) -> str:
    return f"{machine.cpu}, {machine.threads} threads, {dtype}, commit {commit or 'unknown'}"
