"""How much a user's sequences have to tell: their entropy by Lempel and Ziv, of the symbols that say most."""

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import DataError
from mfalcon.train.dataset import Dataset
from mfalcon.types import Ids

_MOST_USERS, _MOST_EVENTS, _LEAST_EVENTS = 200, 300, 20
_ENOUGH_REPEATS = 0.1
"""Share of a user's events whose item the user had before, from which the item is the symbol."""


def entropy_of(dataset: Dataset, users: Ids) -> tuple[float, str]:
    """Entropy of these users' sequences, as a share of what as many symbols in no order would have, and the symbol.

    The symbol is the item where users come back to items. Where they do not (a film is rated once) each item is new
    and its sequence tells nothing; then it is the item's first category with the event's value and actions.

    Raises DataError if no user has enough events.
    """
    generator = np.random.default_rng(0)
    chosen = generator.permutation(users)[:_MOST_USERS]
    sequences = [
        positions[:_MOST_EVENTS] for user in chosen if len(positions := dataset.of_user(user)) >= _LEAST_EVENTS
    ]
    if not sequences:
        raise DataError(f"{dataset.name}: no user has {_LEAST_EVENTS} events, of which an entropy could be taken")
    items = dataset.items.rows(np.ascontiguousarray(dataset.events["item_id"]))
    repeats = float(np.mean([1 - len(np.unique(items[positions])) / len(positions) for positions in sequences]))
    symbols, name = (items, "item") if repeats >= _ENOUGH_REPEATS else _categories(dataset, items)
    found = [relative_entropy(symbols[positions]) for positions in sequences]
    return float(np.mean(found)), name


def relative_entropy(sequence: Ids) -> float:
    """Lempel-Ziv entropy of integers [n] over the logarithm of how many differ; 0 where all are alike.

    ln(n) n / sum of the lengths of the shortest phrases not seen before (Kontoyiannis, Algoet, Suhov and Wyner 1998).
    It is an estimate: short sequences may come out above 1.
    """
    kinds, codes = np.unique(sequence, return_inverse=True)
    if len(kinds) < 2:
        return 0.0
    text, length, total = "".join(map(chr, codes)), len(codes), 0
    for start in range(length):
        size = 1
        while start + size <= length and text[start : start + size] in text[:start]:
            size += 1
        total += size
    return float(np.log(length) * length / total / np.log(len(kinds)))


def _categories(dataset: Dataset, items: Ids) -> tuple[Ids, str]:
    """[num_events] codes of the first side feature, the rounded value and the actions; and their name."""
    codes, names = np.zeros(len(items), dtype=np.int64), list[str]()
    for feature in dataset.side_features[:1]:
        codes, names = _first_category(dataset.items.side[feature.name])[items], [feature.name]
    for name, column in (("value", np.rint(dataset.events["value"])), ("action", dataset.events["actions"])):
        kinds, which = np.unique(column, return_inverse=True)
        if len(kinds) > 1:
            codes, names = codes * len(kinds) + which, [*names, name]
    return codes, " x ".join(names) or "item"


def _first_category(column: NDArray[np.int64] | NDArray[np.uint8]) -> Ids:
    """[num_items + 1] code of each row: of a category its own, of tags one more than the first that is set."""
    own = column if column.ndim == 1 else column.argmax(1) + 1
    return np.concatenate([[0], own]).astype(np.int64)
