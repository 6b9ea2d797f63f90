"""`mfalcon evaluate --rerank`: what a diverse top costs, with the strength chosen on validation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from mfalcon.algorithm import score, user_state
from mfalcon.backends.choice import AUTO
from mfalcon.backends.select import PoolBudget, serve_any
from mfalcon.errors import ConfigError
from mfalcon.models.base import PrefixRanker, Targets, context_codes, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.heads import blend_weights, probability_that_ranks
from mfalcon.rerank.likeness import Centred, Likeness
from mfalcon.train.dataset import Dataset
from mfalcon.train.diversity import PLACES, Pool, Shown, show, strongest
from mfalcon.train.evaluate import binary_task
from mfalcon.train.sequences import labels
from mfalcon.types import Rerank
from mfalcon.window import WindowRule

STRENGTHS = tuple(step / 20 for step in range(1, 17))
TAIL_WEIGHTS = tuple(step / 10 for step in range(11))
MOST_LOSS = {"rated": 0.01, "catalogue": 0.0}
"""Of the NDCG@10 on validation, by pool: what a chosen strength may cost."""
_LEAST_RATED = PLACES + 5
"""A user who rated fewer has hardly an order of ten to choose."""
_MICROBATCH = 96


@dataclass(frozen=True, slots=True)
class RerankRow:
    """A strength and a tail weight on one pool. Figures are of the test part; gain, gain_error: of NDCG@10 over the
    order by score, the mean of the users and its standard error. tail: the long tail's share of the first ten.
    validation_*: what is chosen by.
    """

    pool: str
    strength: float
    tail_weight: float
    chosen: bool
    num_users: int
    ndcg: float
    gain: float
    gain_error: float
    diversity: float
    coverage: float
    tail: float | None
    validation_ndcg: float
    validation_diversity: float


def evaluate_rerank(
    loaded: Checkpoint,
    dataset: Dataset,
    validation: np.ndarray,
    test: np.ndarray,
    method: str,
    depth: int,
    strength: float | None = None,
) -> list[RerankRow]:
    """Rerank what each user with events in a part may be shown, by what is known before the first of them: what they
    rated in it (`rated`), and every item that is not in their history (`catalogue`). A pool that holds something liked
    for nobody is left out. validation, test: bool [num_events]. strength: None tries all of them; else every tail
    weight beside this one. Raises ConfigError for a tail weight where the checkpoint counts no items.
    """
    if strength is not None and loaded.items.num_events is None:
        raise ConfigError("--strength: the checkpoint does not say how often its items were acted on, so none is rare")
    likeness = Likeness(loaded.items, Centred(loaded.model.items.vectors, loaded.model.config.num_items))
    parts = [_pools(loaded, dataset, part) for part in (validation, test)]
    rows = list[RerankRow]()
    for pool, most_loss in MOST_LOSS.items():
        if not all(part[pool] for part in parts):
            continue
        plain = Rerank(method, 0.0, depth)
        on_validation, on_test = (_Tries(part[pool], likeness) for part in parts)
        least = (1 - most_loss) * float(on_validation[plain].ndcg.mean())
        if strength is None:
            swept = {value: replace(plain, strength=value) for value in STRENGTHS}
            coarse = strongest(least, on_validation.of(swept), _diversity)
            near = (round(coarse + step / 100, 2) for step in range(-4, 5))
            swept |= {value: replace(plain, strength=value) for value in near if 0 < value <= 1}
            chosen = strongest(least, on_validation.of(swept), _diversity)
        else:
            swept = {weight: Rerank(method, strength, depth, weight) for weight in TAIL_WEIGHTS}
            chosen = strongest(least, on_validation.of(swept), _tail)
        wishes = [plain, *(swept[value] for value in sorted(swept))]
        rows += _rows(pool, wishes, swept.get(chosen, plain), on_validation, on_test)
    if not rows:
        raise ConfigError("--rerank: nobody likes anything in validation or in test that is not in their history")
    return rows


def rerank_table(title: str, rows: list[RerankRow]) -> Table:
    """Rows, the chosen one of a pool marked; `more` is of the diversity by score, `rare` the tail weight, `tail`
    what it is to raise. 80 columns hold every figure.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for name in ("pool", "strong", "rare", "NDCG@10", "gain", "+-", "diverse", "more", "cover", "tail", "valid."):
        table.add_column(name, justify="left" if name == "pool" else "right", no_wrap=True)
    for row in rows:
        plain = _plain(rows, row.pool)
        table.add_row(
            *(row.pool, f"{row.strength:g}{' *' if row.chosen else '  '}", f"{row.tail_weight:g}"),
            *(f"{row.ndcg:.4f}", f"{row.gain:+.4f}"),
            *(
                f"{row.gain_error:.4f}",
                f"{row.diversity:.3f}",
                f"{_part(row.diversity - plain.diversity, plain.diversity):+.1%}",
            ),
            *(f"{row.coverage:.3f}", "-" if row.tail is None else f"{row.tail:.3f}", f"{row.validation_ndcg:.4f}"),
        )
    return table


def plot_rerank(title: str, rows: list[RerankRow], path: Path) -> None:
    """A panel for each pool: what each strength gains in NDCG@10 over its diversity, the coverage on the other side.
    Writes a PNG.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    figure = Figure(figsize=(11, 4), layout="constrained")
    pools = list(dict.fromkeys(row.pool for row in rows))
    for axes, pool in zip(figure.subplots(1, len(pools), squeeze=False)[0], pools, strict=True):
        of = [row for row in rows if row.pool == pool]
        plain, chosen = _plain(rows, pool), next(row for row in of if row.chosen)
        diversity = [100 * _part(row.diversity - plain.diversity, plain.diversity) for row in of]
        gain = [100 * _part(row.gain, plain.ndcg) for row in of]
        error = [100 * _part(row.gain_error, plain.ndcg) for row in of]
        axes.errorbar(diversity, gain, error, fmt="o-", capsize=2, label="NDCG@10, standard error")
        axes.axvline(diversity[of.index(chosen)], color="k", linestyle=":", label=f"chosen: {chosen.strength:g}")
        axes.set(title=f"{pool}, {plain.num_users} users", xlabel="diversity, %", ylabel="NDCG@10, %")
        beside = axes.twinx()
        beside.plot(diversity, [row.coverage for row in of], "s--", color="C1", markersize=3, label="coverage")
        beside.set(ylabel="coverage", ylim=(0, 1.3 * max(row.coverage for row in of)))
        axes.legend(loc="lower left", fontsize="small")
        beside.legend(loc="upper right", fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, format="png", dpi=80)


def _plain(rows: list[RerankRow], pool: str) -> RerankRow:
    """The order of the scores, which comes first."""
    return next(row for row in rows if row.pool == pool)


def _diversity(shown: Shown) -> float:
    return float(shown.diversity.mean())


def _tail(shown: Shown) -> float:
    assert shown.tail is not None
    return shown.tail


def _part(of: float, whole: float) -> float:
    """As a share; 0 of nothing, as where all items have the same tags or nobody is shown what they like."""
    return of / whole if whole else 0.0


class _Tries(dict[Rerank, Shown]):
    """What each wish shows on the pools of a part, found out when it is asked for."""

    def __init__(self, pools: Sequence[Pool], likeness: Likeness) -> None:
        self._pools, self._likeness = pools, likeness

    def __missing__(self, wish: Rerank) -> Shown:
        return self.setdefault(wish, show(self._pools, self._likeness, wish))

    def of(self, swept: Mapping[float, Rerank]) -> list[tuple[float, Shown]]:
        """What those of a sweep show, by its values."""
        return [(value, self[wish]) for value, wish in swept.items()]


def _rows(
    pool: str,
    wishes: Sequence[Rerank],
    chosen: Rerank,
    validation: Mapping[Rerank, Shown],
    test: Mapping[Rerank, Shown],
) -> Iterator[RerankRow]:
    plain = test[wishes[0]]
    for wish in wishes:
        shown = test[wish]
        gain = shown.ndcg - plain.ndcg
        yield RerankRow(
            pool=pool,
            strength=wish.strength,
            tail_weight=wish.tail_weight,
            chosen=wish == chosen,
            num_users=len(gain),
            ndcg=float(shown.ndcg.mean()),
            gain=float(gain.mean()),
            gain_error=float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else 0.0,
            diversity=float(shown.diversity.mean()),
            coverage=shown.coverage,
            tail=shown.tail,
            validation_ndcg=float(validation[wish].ndcg.mean()),
            validation_diversity=float(validation[wish].diversity.mean()),
        )


def _pools(loaded: Checkpoint, dataset: Dataset, part: np.ndarray) -> dict[str, list[Pool]]:
    """By the name of the pool, one of each user whom it holds something liked for. Dense features are not given."""
    model, items, config = loaded.model, loaded.items, loaded.model.config
    budget = None
    if isinstance(model, PrefixRanker):
        budget = PoolBudget(64 << 20, torch.get_num_threads(), config.max_history * model.tokens_per_event)
    served = serve_any(model, AUTO, budget)
    window = WindowRule(config.max_history, config.window_chunk)
    blend = np.array(blend_weights(config.tasks, config.blend))
    probability = probability_that_ranks(config.tasks, config.blend)
    names, likes = [task.name for task in config.tasks], labels(dataset, config.tasks)[:, binary_task(config)] > 0
    rows, times = items.rows(np.ascontiguousarray(dataset.events["item_id"])), dataset.events["time_ms"]
    pools: dict[str, list[Pool]] = {name: [] for name in MOST_LOSS}
    for user in np.unique(dataset.user[part]):
        positions = dataset.of_user(int(user))
        later = positions[part[positions]]
        now = int(times[later[0]])
        history = positions[times[positions] < now]
        candidates = np.setdiff1d(np.arange(1, items.num_rows), rows[history])
        liked = np.isin(candidates, rows[later[likes[later]]])
        if not liked.any():
            continue
        seen = history[window.start(len(history)) :]
        known = {name: int(column[user]) for name, column in dataset.user_context.items() if column[user] >= 0}
        codes = context_codes(config.context_features, known, now)
        with torch.inference_mode():
            keys = items.keys(items.item_id)[candidates - 1]
            targets = Targets(torch.from_numpy(keys), torch.from_numpy(codes))
            events = event_tokens(dataset.events[seen], items, torch.device("cpu"))
            state = user_state(served, events, targets.context, now)
            by_task = score(served, state, targets, now, _MICROBATCH).to(torch.float64).numpy().T
        scores = (blend @ by_task).astype(np.float32)
        probabilities = None if probability is None else by_task[names.index(probability)].astype(np.float32)
        pool = Pool(candidates, scores, probabilities, liked)
        pools["catalogue"].append(pool)
        rated = np.isin(candidates, rows[later])
        if rated.sum() >= _LEAST_RATED:
            few = None if probabilities is None else probabilities[rated]
            pools["rated"].append(Pool(candidates[rated], scores[rated], few, liked[rated]))
    return pools
