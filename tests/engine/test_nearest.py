"""Nearest items: exactly those of a category, and with FAISS nearly all of them."""

import numpy as np
import pytest
import torch
from torch import Tensor

import mfalcon.engine.nearest
from mfalcon.engine.nearest import ExactSearch, NearestItems
from mfalcon.engine.nearest_faiss import FaissSearch, is_here
from mfalcon.errors import InvalidInput
from mfalcon.models.lum import LUM
from tests.small import small_checkpoint

NUM, DIM, TOP = 20_001, 16, 20


def made() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, popularity, members of two categories, and queries; items lie in clusters, as learned ones do."""
    rng = torch.Generator().manual_seed(0)
    middles = torch.randn(100, DIM, generator=rng)
    keys = middles[torch.randint(0, 100, (NUM,), generator=rng)] + 0.3 * torch.randn(NUM, DIM, generator=rng)
    members = torch.ones(2, NUM, dtype=torch.bool)
    members[1] = torch.rand(NUM, generator=rng) < 0.3
    queries = middles[:12] + 0.3 * torch.randn(12, DIM, generator=rng)
    return keys, 0.1 * torch.randn(NUM, generator=rng), members, queries


def test_the_best_of_a_category_in_order() -> None:
    keys, popularity, members, queries = made()
    found = ExactSearch(keys, popularity, members.clone()).best(queries, [0, 1] * 6, TOP)
    for at, (rows, scores) in enumerate(found):
        logits = queries[at] @ keys.t() + popularity
        logits[~members[at % 2]] = -torch.inf
        logits[0] = -torch.inf  # the unknown item, which is never found
        expected = logits.sort(descending=True)
        assert torch.allclose(scores, expected.values[:TOP], atol=1e-4)
        assert 0 not in rows.tolist() and members[at % 2][rows].all()


def test_no_more_than_a_category_has(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, popularity, members, queries = made()
    members[1] = False
    members[1, [0, 5, 7]] = True
    monkeypatch.setattr(mfalcon.engine.nearest, "_SCORES_AT_ONCE", 3 * NUM)  # in parts
    found = ExactSearch(keys, popularity, members).best(queries, [1] * 12, TOP)
    assert all(sorted(rows.tolist()) == [5, 7] and len(scores) == 2 for rows, scores in found)


def test_more_items_than_are_compared_need_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mfalcon.engine.nearest, "MOST_EXACT", 10)
    monkeypatch.setattr(mfalcon.engine.nearest, "is_here", lambda: False)
    checkpoint = small_checkpoint("lum", torch.float32)
    assert isinstance(checkpoint.model, LUM)
    items = NearestItems(checkpoint.model, checkpoint.items)
    with pytest.raises(InvalidInput, match="faiss"):
        items.nearest(np.ones((1, 12), dtype=np.float32), [0], 3)


@pytest.mark.skipif(not is_here(), reason="FAISS is an extra")
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
def test_faiss_finds_nearly_all_of_them() -> None:
    keys, popularity, members, queries = made()
    categories = [0, 1] * 6
    exact = ExactSearch(keys, popularity, members.clone()).best(queries, categories, TOP)
    found = FaissSearch(keys, popularity, members).best(queries, categories, TOP)
    shares = []
    for at, ((rows, _), (near, scores)) in enumerate(zip(exact, found, strict=True)):
        shares.append(len(set(rows.tolist()) & set(near.tolist())) / TOP)
        assert members[categories[at]][near].all() and 0 not in near.tolist()
        assert torch.allclose(scores, queries[at] @ keys[near].t() + popularity[near], atol=1e-3)
        assert (scores.diff() <= 0).all()
    assert np.mean(shares) >= 0.9
