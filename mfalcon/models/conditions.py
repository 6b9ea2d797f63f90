"""What a large user model is asked: conditions, each an outcome and a category of items.

The outcome has to be part of a condition: a model that was asked by category alone told liked from disliked items no
better than their popularity does (docs/LOG.md).
"""

from dataclasses import dataclass

from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import SideFeature

ANY = 0
"""The category of every item."""


@dataclass(frozen=True, slots=True)
class Condition:
    """The next item of a user whose outcome is this, of a category: `ANY`, or 1 + index in the vocabulary."""

    name: str
    is_positive: bool
    category: int


def conditions(config: RankerConfig) -> tuple[Condition, ...]:
    """Those of a configuration, by row: any item of a positive outcome, each category of it, and the same of a negative
    one. They are named "like", "like:Comedy", "not_like" and "not_like:Comedy". None of a model that ranks items.
    """
    if config.lum is None:
        return ()
    task, feature = config.lum.task, category_feature(config)
    out = []
    for is_positive in (True, False):
        name = task if is_positive else f"not_{task}"
        out.append(Condition(name, is_positive, ANY))
        for index, value in enumerate(feature.vocabulary if feature is not None else ()):
            out.append(Condition(f"{name}:{value}", is_positive, 1 + index))
    return tuple(out)


def category_feature(config: RankerConfig) -> SideFeature | None:
    """The side feature whose values are the categories, if there is one."""
    if config.lum is None or config.lum.category is None:
        return None
    [feature] = [feature for feature in config.side_features if feature.name == config.lum.category]
    return feature
