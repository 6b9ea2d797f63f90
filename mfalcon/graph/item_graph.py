"""Which items are neighbours: those that the same users liked, and those that share side features where these are too
few.

E2E-GRec (arXiv 2511.20564) samples subgraphs of a heterogeneous graph of several domains. Here the nodes are the items
of one table, and an edge is a user who liked both of its ends, or a tag that both have.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfalcon.types import Floats, Ids

_PAIRS_AT_ONCE = 1 << 22
_HUBS = 64
"""Most items of a tag that others with it may be neighbours of: those that were liked most often."""
_ROWS_AT_ONCE = 1_024
_SIDE_WEIGHT = 0.1
"""Of an edge by side features alone, beside one of likes whose cosine is 1."""

SideColumns = Mapping[str, NDArray[np.int64] | NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class ItemGraph:
    """neighbours: int64 [num_rows, most], item rows, 0 where there are fewer. weights: float32 [num_rows, most], the
    larger the nearer, in descending order, 0 where there is no neighbour. num_liked: int64 [num_rows], by how many
    events each was liked. The unknown item has no neighbour and is none.
    """

    neighbours: Ids
    weights: Floats
    num_liked: Ids

    @property
    def num_rows(self) -> int:
        """Rows of the item table, the reserved row included."""
        return len(self.neighbours)

    @property
    def num_edges(self) -> int:
        """Neighbours of all items together."""
        return int(np.count_nonzero(self.weights))


def item_graph(
    user: Ids, rows: Ids, num_rows: int, side: SideColumns, *, most: int = 20, reach: int = 200
) -> ItemGraph:
    """The graph of events that are likes, each user's in the order of time.

    user, rows: int64 [num_likes], whose each is and the item row. side: as in an `ItemTable`. most: neighbours of an
    item. reach: two likes of one user make an edge if they are no more than so many apart, which bounds the work by
    num_likes * reach. An edge weighs the sum over users of 1 / (their likes), over the root of how often both ends were
    liked: whoever likes everything, and what everybody likes, say little.
    """
    known = rows > 0
    user, rows = user[known], rows[known]
    order = np.argsort(user, kind="stable")
    user, rows = user[order], rows[order]
    num_liked = np.bincount(rows, minlength=num_rows).astype(np.int64)
    first, second, weight = _edges(user, rows, num_rows, reach)
    weight /= np.sqrt(np.maximum(num_liked[first], 1) * np.maximum(num_liked[second], 1))
    ends = np.concatenate([first, second]), np.concatenate([second, first])
    neighbours, weights = _nearest(*ends, np.concatenate([weight, weight]), num_rows, most)
    _fill_by_side(neighbours, weights, side, num_liked)
    return ItemGraph(neighbours, weights, num_liked)


def _edges(user: Ids, rows: Ids, num_rows: int, reach: int) -> tuple[Ids, Ids, NDArray[np.float64]]:
    """Every pair of items that some user liked, the smaller row first, and what it weighs."""
    num_of = np.bincount(user)[user] if len(user) else user
    keys, sums = np.empty(0, dtype=np.int64), np.empty(0)
    waiting_keys, waiting_sums, num_waiting = list[Ids](), list[NDArray[np.float64]](), 0

    def merged() -> tuple[Ids, NDArray[np.float64]]:
        found, inverse = np.unique(np.concatenate([keys, *waiting_keys]), return_inverse=True)
        added = np.bincount(inverse, np.concatenate([sums, *waiting_sums]), minlength=len(found))
        return found, added.astype(np.float64)

    for apart in range(1, min(reach, len(user) - 1) + 1):
        at = np.flatnonzero((user[apart:] == user[:-apart]) & (rows[apart:] != rows[:-apart]))
        if not len(at):
            continue
        low, high = np.minimum(rows[at], rows[at + apart]), np.maximum(rows[at], rows[at + apart])
        waiting_keys.append(low * num_rows + high)
        waiting_sums.append(1.0 / num_of[at])
        num_waiting += len(at)
        if num_waiting >= _PAIRS_AT_ONCE:
            keys, sums = merged()
            waiting_keys, waiting_sums, num_waiting = [], [], 0
    keys, sums = merged()
    return keys // num_rows, keys % num_rows, sums


def _nearest(first: Ids, second: Ids, weight: NDArray[np.float64], num_rows: int, most: int) -> tuple[Ids, Floats]:
    """The `most` heaviest edges of each first end: neighbours and weights, [num_rows, most]."""
    neighbours, weights = np.zeros((num_rows, most), np.int64), np.zeros((num_rows, most), np.float32)
    order = np.lexsort((second, -weight, first))
    first, second, weight = first[order], second[order], weight[order]
    place = np.arange(len(first)) - np.searchsorted(first, first)
    kept = place < most
    neighbours[first[kept], place[kept]] = second[kept]
    weights[first[kept], place[kept]] = weight[kept]
    return neighbours, weights


def _fill_by_side(neighbours: Ids, weights: Floats, side: SideColumns, num_liked: Ids) -> None:
    """Give items with free places the liked items that share most with them, each value by how rare it is."""
    num_rows, most = neighbours.shape
    values = list(_values_of(side, num_rows))
    needy = np.flatnonzero((weights == 0).any(1))
    needy = needy[needy > 0]
    if not values or not len(needy):
        return
    hubs = np.unique(np.concatenate([_liked_most(holds, num_liked) for holds in values]))
    rarity = np.array([np.log(num_rows / max(1, np.count_nonzero(holds))) for holds in values])
    of_hubs = np.stack([holds[hubs] for holds in values], axis=1) * rarity
    for start in range(0, len(needy), _ROWS_AT_ONCE):
        part = needy[start : start + _ROWS_AT_ONCE]
        shared = np.stack([holds[part] for holds in values], axis=1) @ of_hubs.T
        shared[part[:, None] == hubs] = 0
        shared[(neighbours[part][:, :, None] == hubs).any(1)] = 0
        best = np.argsort(-shared, axis=1, kind="stable")[:, :most]
        score = np.take_along_axis(shared, best, 1) / max(rarity.sum(), 1e-9)
        for row, hub, shares in zip(part, hubs[best], score, strict=True):
            num = np.count_nonzero(weights[row])
            found = hub[shares > 0][: most - num]
            neighbours[row, num : num + len(found)] = found
            weights[row, num : num + len(found)] = _SIDE_WEIGHT * shares[: len(found)]


def _values_of(side: SideColumns, num_rows: int) -> Iterator[NDArray[np.bool_]]:
    """Which rows have each value of each side feature: bool [num_rows], the unknown item's among them."""
    for name in sorted(side):
        column = np.asarray(side[name])
        codes: Sequence[int] = range(column.shape[1]) if column.ndim == 2 else range(1, int(column.max(initial=0)) + 1)
        for code in codes:
            holds = np.zeros(num_rows, np.bool_)
            holds[1:] = column[:, code] != 0 if column.ndim == 2 else column == code
            yield holds


def _liked_most(holds: NDArray[np.bool_], num_liked: Ids) -> Ids:
    rows = np.flatnonzero(holds & (num_liked > 0))
    return rows[np.argsort(-num_liked[rows], kind="stable")[:_HUBS]]
