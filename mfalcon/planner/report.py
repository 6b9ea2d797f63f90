"""A plan as a person reads it: what was run, how far to trust it, what to take, what more would bring, and a curve."""

from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mfalcon.planner.grid import RunRecord, Shape
from mfalcon.planner.law import Prediction
from mfalcon.planner.plan import Option, Plan, Trust

_OF_90_PERCENT = 1.645
"""Standard deviations to either side of the middle 90%."""
_FARTHEST = 0.15
"""Of a measured latency from the predicted one, beyond which it is said."""
_BAR = 24


def interval(prediction: Prediction) -> str:
    """An AUC with the bounds that 9 of 10 runs are expected within."""
    half = _OF_90_PERCENT * prediction.deviation
    return f"{prediction.auc:.4f} ({prediction.auc - half:.4f} to {prediction.auc + half:.4f})"


def runs_table(records: list[RunRecord]) -> Table:
    """Every run, as it was."""
    table = _table("Runs", "layers", "width", "history", "users", "events", "validation AUC", "test AUC", "seconds")
    for r in records:
        shape = r.shape
        table.add_row(
            *(str(shape.layers), str(shape.dim), str(shape.max_history), f"{shape.users_share:g}", f"{r.events:,}"),
            *(f"{r.validation:.4f}", "-" if r.test is None else f"{r.test:.4f}", f"{r.seconds:.0f}"),
        )
    return table


def trust_lines(trust: Trust, regret: float) -> Iterator[str]:
    """How far the law was off."""
    yield (
        f"law of {trust.num_runs} runs: {trust.left_out:.4f} AUC off for a run left out (plain logarithms "
        f"{trust.plain_left_out:.4f}), {trust.held_out:.4f} for those held out ({trust.plain_held_out:.4f}); under no "
        f"budget would it have missed the best run measured by more than {regret:.4f}"
    )


def plan_lines(plan: Plan, budget_ms: float, num_candidates: int, target_auc: float | None) -> Iterator[str]:
    """The recommendation in sentences."""
    for check in plan.checks:
        far = abs(check.predicted_s / check.measured_s - 1) > _FARTHEST
        kept = "kept" if 1e3 * check.measured_s <= budget_ms else "NOT kept"
        yield (
            f"served with random weights, {described(check.shape)} took {1e3 * check.measured_s:.2f} ms, predicted "
            f"{1e3 * check.predicted_s:.2f}{' (more than 15% off: is the machine busy?)' if far else ''}: {kept}"
        )
    if plan.best is None:
        quickest = plan.curve[0]
        yield (
            f"nothing keeps {budget_ms:g} ms for {num_candidates:,} candidates: the quickest, "
            f"{described(quickest.shape)}, is predicted to take {1e3 * quickest.seconds:.2f} ms"
        )
        return
    best = plan.best
    if plan.chosen is None:
        yield f"nothing within {budget_ms:g} ms is predicted to reach AUC {target_auc:.4f}; the best is"
    yield (
        f"{described(best.shape)}: validation AUC {interval(best.auc)}, {1e3 * best.seconds:.2f} ms for "
        f"{num_candidates:,} candidates of the {budget_ms:g} allowed"
    )
    if plan.memory is not None:
        size = plan.memory.state_bytes
        yield (
            f"{plan.memory.parameters:,} parameters; a user's KV state takes {size / 1024:,.0f} KiB in float32, so a "
            f"GiB holds {(1 << 30) // size:,} users"
        )
    if plan.data_needed is not None:
        needed = plan.data_needed
        times = (
            "no amount of data that the law can speak of" if needed == float("inf") else f"{needed:.1f} times the data"
        )
        yield f"the target would need {times}, by the law"


def described(shape: Shape) -> str:
    """A shape in words."""
    layers = "1 layer" if shape.layers == 1 else f"{shape.layers} layers"
    return f"{layers} of width {shape.dim} over {shape.max_history} events"


def more_table(plan: Plan) -> Table:
    """What twice as much of each thing would bring."""
    table = _table("Twice as much of", "one thing", "AUC", "90% of runs", "ms", "")
    for more in plan.more:
        half = _OF_90_PERCENT * more.gain.deviation
        table.add_row(
            *(more.what, f"{more.gain.auc:+.4f}", f"{more.gain.auc - half:+.4f} to {more.gain.auc + half:+.4f}"),
            *(f"{1e3 * more.seconds:.2f}", "beyond all runs" if more.is_beyond else ""),
        )
    return table


def curve_table(plan: Plan) -> Table:
    """The best for every latency, with a bar for its AUC."""
    table = _table("Best for each latency", "ms", "layers", "width", "history", "AUC", "")
    low, high = plan.curve[0].auc.auc, plan.curve[-1].auc.auc
    for option in plan.curve:
        share = (option.auc.auc - low) / (high - low) if high > low else 1.0
        mark = " <- chosen" if plan.chosen is not None and option.shape == plan.chosen.shape else ""
        table.add_row(
            *(f"{1e3 * option.seconds:.2f}", str(option.shape.layers), str(option.shape.dim)),
            *(str(option.shape.max_history), f"{option.auc.auc:.4f}", "=" * round(1 + (_BAR - 1) * share) + mark),
        )
    return table


def plot_plan(title: str, plan: Plan, options: list[Option], budget_ms: float, path: Path) -> None:
    """Predicted AUC over latency of all configurations, the curve with its interval and the budget. Writes a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([1e3 * o.seconds for o in options], [o.auc.auc for o in options], ".", color="0.7", label="all")
    half = [_OF_90_PERCENT * option.auc.deviation for option in plan.curve]
    axes.errorbar(
        [1e3 * option.seconds for option in plan.curve],
        [option.auc.auc for option in plan.curve],
        half,
        fmt="o-",
        capsize=2,
        label="best for each latency, 90% of runs",
    )
    if plan.chosen is not None:
        axes.plot(1e3 * plan.chosen.seconds, plan.chosen.auc.auc, "*", markersize=14, color="C3", label="chosen")
    axes.axvline(budget_ms, color="k", linestyle=":", label="budget")
    axes.set(title=title, xlabel="ms of a rank", ylabel="validation AUC")
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, format="png", dpi=100)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    return table
