"""Items of a model with their titles, for people who look at its answers."""

from typing import Final

import numpy as np

from mfalcon.models.items import ItemTable
from mfalcon.types import Ids, Items, ItemsRequest

NO_ITEMS: Final = ItemTable(np.empty(0, dtype=np.int64), (), {})


def listed(table: ItemTable, request: ItemsRequest) -> Items:
    """What was asked for of a table, and then a sample of it: no item twice in that, and none that it does not have."""
    item_ids = np.concatenate([request.item_ids, table.item_id[_sample(table, request)]])
    rows = table.rows(item_ids)
    titles = tuple(table.titles[row - 1] if row else "" for row in rows.tolist())
    return Items(item_ids, titles, len(table.item_id), table.texts_of(item_ids))


def _sample(table: ItemTable, request: ItemsRequest) -> Ids:
    """Positions in the table, [at most num_sampled], one with twice the events twice as likely to be first."""
    generator = np.random.default_rng(request.seed)
    weights = 1.0 + (np.zeros(len(table.item_id)) if table.num_events is None else table.num_events)
    # The greatest of u ** (1 / weight) are a weighted sample without replacement (Efraimidis and Spirakis, 2006).
    keys = np.log(generator.random(len(weights), dtype=np.float64) + np.finfo(np.float64).tiny) / weights
    return np.argsort(-keys, kind="stable")[: request.num_sampled]
