"""Nearest items among more than are compared one by one, by FAISS: inverted lists, of which the nearest are read.

Approximate: what a list that is not read holds is not found. FAISS is an extra, and only this file knows it.
"""

import importlib.util
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

_SHARE_READ: Final = 0.05
"""Of the lists. In `tests/engine/test_nearest.py` that finds nine in ten of the true nearest."""
_TRAINED_ON: Final = 64
"""Items for each list that its middle is found by."""


def is_here() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


class FaissSearch:
    """See `mfalcon.engine.nearest.ExactSearch`, whose popularity is one more dimension here."""

    def __init__(self, keys: Tensor, popularity: Tensor, members: Tensor) -> None:
        import faiss  # noqa: PLC0415 (an extra)

        vectors = np.ascontiguousarray(torch.cat([keys, popularity.unsqueeze(-1)], dim=-1).numpy()[1:])
        num_items, dim = vectors.shape
        num_lists = max(1, int(4 * num_items**0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, num_lists, faiss.METRIC_INNER_PRODUCT)
        rng = np.random.default_rng(0)
        index.train(vectors[rng.choice(num_items, min(num_items, _TRAINED_ON * num_lists), replace=False)])
        index.add(vectors)
        self._index, self._faiss = index, faiss
        self._num_read = max(1, round(_SHARE_READ * num_lists))
        self._bits = [np.packbits(of.numpy()[1:], bitorder="little") for of in members]
        self._num_items = num_items

    def best(self, queries: Tensor, categories: Sequence[int], num: int) -> list[tuple[Tensor, Tensor]]:
        """See `Search`."""
        faiss, out = self._faiss, []
        for query, category in zip(torch.nn.functional.pad(queries, (0, 1), value=1.0), categories, strict=True):
            bits = self._bits[category]
            chosen = faiss.IDSelectorBitmap(self._num_items, faiss.swig_ptr(bits))
            how = faiss.SearchParametersIVF(sel=chosen, nprobe=self._num_read)
            scores, places = self._index.search(query.unsqueeze(0).numpy(), num, params=how)
            is_found = places[0] >= 0
            out.append((torch.from_numpy(places[0][is_found] + 1), torch.from_numpy(scores[0][is_found])))
        return out
