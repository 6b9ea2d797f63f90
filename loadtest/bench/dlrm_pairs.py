"""Which generative ranker has so many times a DLRM's FLOPs, counted from the shapes alone.

FLOPs are of the matrix products of one forward for one (user, candidate) with nothing shared, so the ratio fixes the
length of the ranker's history.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from loadtest.bench.dlrm import DlrmSize, dlrm_named, random_dlrm
from loadtest.bench.floor import prefill_work, score_work, sum_work
from loadtest.bench.shapes import SHAPES, Shape
from mfalcon.errors import ConfigError

RANKERS = {
    shape.name: shape
    for shape in (
        Shape("d128L3", num_layers=3, dim=128, num_heads=2),
        SHAPES["S"],
        Shape("d256L6", num_layers=6, dim=256, num_heads=4),
        Shape("d512L3", num_layers=3, dim=512, num_heads=8),
        SHAPES["tiny"],
    )
}
"""The generative rankers that may be compared; tiny is for trying the tool."""
MOST_EVENTS = 8_192
"""Of a history: one that a ratio makes longer is refused."""
_LONGEST = 1 << 40


@dataclass(frozen=True, slots=True)
class Pair:
    """A DLRM and a ranker of about `ratio` times its FLOPs by a history of n. refused: why it is not measured."""

    dlrm: str
    shape: str
    n: int
    dlrm_flops: int
    served_flops: int
    ranker_flops: int
    refused: str | None = None

    @property
    def ratio(self) -> float:
        """Of their FLOPs."""
        return self.ranker_flops / self.dlrm_flops


def unshared_flops(shape: Shape, n: int) -> int:
    """Of one forward of a ranker over [history of n, candidate]."""
    return sum_work(prefill_work(shape, n), score_work(shape, n, 1)).flops


def counted_ratio(pair: Pair, m: float) -> float:
    """The law of a cold request of m candidates: m F_dlrm / (F_prefill(n) + m F_score(n))."""
    shape = RANKERS[pair.shape]
    return m * pair.dlrm_flops / (prefill_work(shape, pair.n).flops + m * score_work(shape, pair.n, 1).flops)


def history_for(shape: Shape, flops: float) -> int:
    """The shortest history at which one forward has at least so many FLOPs; 0 if that of one event has more already."""
    if unshared_flops(shape, 1) > flops:
        return 0
    return 1 + bisect.bisect_left(range(1, _LONGEST), flops, key=partial(unshared_flops, shape))


def pairs_of(ratio: float, dlrms: Sequence[str], shapes: Sequence[str]) -> list[Pair]:
    """Every DLRM with every ranker. Raises ConfigError for an unknown name or ratio, or if every pair is refused."""
    if not (math.isfinite(ratio) and ratio > 0):
        raise ConfigError(f"ratio: got {ratio}, must be positive and finite")
    for name in shapes:
        if name not in RANKERS:
            raise ConfigError(f"shape: got {name!r}, must be one of {', '.join(RANKERS)}")
    pairs = [_pair(ratio, dlrm_named(dlrm), RANKERS[shape]) for dlrm in dlrms for shape in shapes]
    if all(pair.refused for pair in pairs):
        reasons = "; ".join(f"{pair.dlrm}:{pair.shape}: {pair.refused}" for pair in pairs)
        raise ConfigError(f"ratio: got {ratio:g}, and no pair is left: {reasons}")
    return pairs


def _pair(ratio: float, size: DlrmSize, shape: Shape) -> Pair:
    network = random_dlrm(size, torch.float32, 0)
    flops = network.flops()
    n = history_for(shape, min(ratio * flops, float(unshared_flops(shape, _LONGEST - 1))))
    refused = None
    if n == 0:
        refused = f"one event alone has more than {ratio:g} times the DLRM's FLOPs"
    elif n > MOST_EVENTS:
        refused = f"its history would have {n:,} events, more than {MOST_EVENTS:,}"
    return Pair(size.name, shape.name, n, flops, served_flops(size), unshared_flops(shape, max(n, 1)), refused)


def served_flops(size: DlrmSize) -> int:
    """Of the matrix products of the split form for one candidate of a request: of the activation unit's first layer its
    product of event and candidate, and what is the candidate's alone; of the first cross layer the columns that are not
    the user's.
    """
    network = random_dlrm(size, torch.float32, 0)
    first, dim = network.activation.linears[0], network.config.dim
    saved = size.num_events * 2 * 3 * dim * first.out_features - 2 * dim * first.out_features
    return network.flops() - saved - 2 * network.user_dim * network.config.cross_rank
