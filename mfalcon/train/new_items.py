"""Items of a data set that a checkpoint does not know, beside those that it knows, by the checkpoint's vocabularies."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config_features import SideFeature
from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.train.dataset import Dataset
from mfalcon.train.vocabulary import fit_to


def with_items_of(dataset: Dataset, loaded: Checkpoint) -> Dataset:
    """The events of a data set as a checkpoint reads them, with its items and those of the data set. What is new has
    its title and, of its side features, the values that the checkpoint knows. Raises DataError as `fit_to` does.
    """
    theirs, known = dataset.items, loaded.items
    new = np.flatnonzero(known.rows(theirs.item_id) == UNKNOWN_ROW)
    item_id = np.concatenate([known.item_id, theirs.item_id[new]])
    order = np.argsort(item_id)
    titles = (*known.titles, *(theirs.titles[index] for index in new))
    side = {
        feature.name: np.concatenate([known.side[feature.name], _recoded(dataset, feature)[new]])[order]
        for feature in loaded.model.config.side_features
    }
    items = ItemTable(item_id[order], tuple(titles[index] for index in order), side)
    return replace(fit_to(dataset, loaded), items=items)


def _recoded(dataset: Dataset, feature: SideFeature) -> NDArray[np.int64] | NDArray[np.uint8]:
    """A column of the data set's items by the vocabulary of a feature of this name; nothing where it has none such."""
    num, place = len(dataset.items.item_id), {value: index for index, value in enumerate(feature.vocabulary)}
    own = next((one for one in dataset.side_features if (one.name, one.kind) == (feature.name, feature.kind)), None)
    if feature.kind == "category":
        if own is None:
            return np.zeros(num, dtype=np.int64)
        codes = np.array([0, *(place.get(value, -1) + 1 for value in own.vocabulary)], dtype=np.int64)
        return codes[dataset.items.side[feature.name]]
    tags = np.zeros((num, len(feature.vocabulary)), dtype=np.uint8)
    for index, value in enumerate(own.vocabulary if own is not None else ()):
        if value in place:
            tags[:, place[value]] = dataset.items.side[feature.name][:, index]
    return tags
