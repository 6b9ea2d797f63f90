"""A data set in a checkpoint's words: the same items, action bits and context codes that the model was trained on."""

from dataclasses import replace

from mfalcon.errors import DataError
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.train.dataset import Dataset


def fit_to(dataset: Dataset, loaded: Checkpoint) -> Dataset:
    """The events of a data set as the checkpoint reads them; items that it does not know become the reserved row.

    Raises DataError for actions, or names of context values, that the checkpoint does not know.
    """
    config = loaded.model.config
    dataset = dataset.with_actions(config.actions)
    theirs = {feature.name: feature for feature in dataset.context_features}
    user_context = {}
    for feature in config.context_features:
        if feature.name not in dataset.user_context:
            continue
        if theirs[feature.name] != feature:
            raise DataError(f"{dataset.name}: context feature {feature.name} has other values than in the checkpoint")
        user_context[feature.name] = dataset.user_context[feature.name]
    return replace(
        dataset,
        items=loaded.items,
        side_features=config.side_features,
        context_features=config.context_features,
        user_context=user_context,
        tasks=config.tasks,
        blend=config.blend,
    )


def missing_features(dataset: Dataset, loaded: Checkpoint) -> list[str]:
    """The dense features that the checkpoint reads and the data set has not: each counts as its mean."""
    return [feature.name for feature in loaded.model.config.dense_features if feature.name not in dataset.dense]


def check_labels(dataset: Dataset, loaded: Checkpoint) -> None:
    """Raises DataError for a task of values where no column was named for them: all would be 0."""
    of_value = [task.name for task in loaded.model.config.tasks if not task.any_action]
    if of_value and dataset.reading is not None and not dataset.reading.has_value:
        raise DataError(f"{dataset.name}: task {of_value[0]} is of the value, and --columns names none (value=...)")
