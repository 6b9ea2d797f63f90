"""The graph's features of a candidate: its own vector, and how it meets what its user acted on lately.

Two-level fusion (E2E-GRec, arXiv 2511.20564): the vectors meet the other features of an item, and once more what is
known of its user. Both join behind the layers, so that no KV state depends on a vector, and a refresh voids none:

    graph_item      the vector of the candidate
    graph_like      times the mean vector of the liked ones of the user's newest `GraphConfig.max_events` events
    graph_dislike   times the mean vector of the others of these

of the visible history, which is the acknowledged history followed by the request's recent events. A mean of no events,
and the vector of an unknown item, are zeros.
"""

import numpy as np
from numpy.typing import NDArray

from mfalcon.features.standard import LARGEST
from mfalcon.types import Floats, Ids

LARGEST_VECTOR = LARGEST
"""In magnitude, of any number in a vector."""


def graph_features(vectors: Floats, rows: Ids, is_liked: NDArray[np.bool_], candidates: Ids) -> Floats:
    """vectors: float32 [num_rows, dim]. rows, is_liked: [num_events], of the events that count. candidates: item rows
    [n]. Returns float32 [n, 3 * dim].
    """
    own, events, dim = looked_up(vectors, candidates), looked_up(vectors, rows), vectors.shape[1]
    out = np.empty((len(own), 3 * dim), dtype=np.float32)
    out[:, :dim] = own
    for level, chosen in enumerate((is_liked, ~is_liked), 1):
        mean = events[chosen].sum(0, dtype=np.float64) / max(1, np.count_nonzero(chosen))
        np.multiply(own, mean.astype(np.float32), out=out[:, level * dim : (level + 1) * dim])
    return np.clip(out, -LARGEST, LARGEST, out=out)


def looked_up(vectors: Floats, rows: Ids) -> Floats:
    """The vectors of item rows [n]: zeros of items that came after the graph. [n, dim]."""
    known = rows < len(vectors)
    out: Floats = vectors[np.where(known, rows, 0)]
    return out if known.all() else np.where(known[:, None], out, np.float32(0))
