"""A made-up data set of the shape of MovieLens-100K, for tests and demonstrations without the real one."""

import numpy as np
from numpy.typing import NDArray

from mfalcon.models.config import Task
from mfalcon.models.config_features import ContextFeature, SideFeature
from mfalcon.models.items import ItemTable
from mfalcon.train.dataset import Dataset
from mfalcon.types import EVENT_DTYPE

NUM_FACTORS = 8
NUM_GENRES = 18
NUM_YEARS = 12
NUM_AGES, NUM_GENDERS, NUM_OCCUPATIONS = 8, 2, 21
RATING_SHARES = (0.06, 0.11, 0.27, 0.34, 0.22)
"""Shares of ratings 1 .. 5, about those of MovieLens-100K."""
TIE_SHARE = 0.5
"""Share of events at the same time as the user's previous event."""
LENGTH_SIGMA = 0.9
"""Of the log-normal history lengths."""
START_MS = 874_724_710_000
PERIOD_S = 214 * 86_400


def synthetic(num_users: int, num_items: int, events_per_user: int, seed: int) -> Dataset:
    """Ratings 1 .. 5 that follow the item's quality, its genres and how each user takes to them.

    events_per_user: mean of the history lengths, each at least 1. A user may rate an item twice. The same arguments
    give the same data set.
    """
    rng = np.random.default_rng(seed)
    table, side_features, item_factor, quality = _items(rng, num_items)
    user_context = {
        "age": rng.integers(0, NUM_AGES, num_users),
        "gender": rng.integers(0, NUM_GENDERS, num_users),
        "occupation": rng.integers(0, NUM_OCCUPATIONS, num_users),
    }
    age_factor = rng.normal(size=(NUM_AGES, NUM_FACTORS))
    user_factor = rng.normal(size=(num_users, NUM_FACTORS)) + 0.5 * age_factor[user_context["age"]]

    mean_log = np.log(events_per_user) - LENGTH_SIGMA**2 / 2
    history_len = np.maximum(1, rng.lognormal(mean_log, LENGTH_SIGMA, num_users).round().astype(np.int64))
    user = np.repeat(np.arange(num_users), history_len)
    popularity = np.exp(1.3 * rng.normal(size=num_items) + 0.5 * quality)
    item = np.searchsorted(np.cumsum(popularity / popularity.sum())[:-1], rng.random(len(user)), side="right")

    taste = np.einsum("nf,nf->n", user_factor[user], item_factor[item]) / np.sqrt(NUM_FACTORS)
    leniency = 0.5 * rng.normal(size=num_users)
    liking = quality[item] + taste + leniency[user] + 0.7 * rng.normal(size=len(user))
    cuts = np.quantile(liking, np.cumsum(RATING_SHARES)[:-1])
    rating = 1 + np.searchsorted(cuts, liking, side="right")

    time_ms = _times(rng, history_len)
    order = np.lexsort((table.item_id[item], user, time_ms))
    events = np.empty(len(user), dtype=EVENT_DTYPE)
    events["item_id"] = table.item_id[item]
    events["actions"] = 1 << (rating - 1)
    events["value"] = rating
    events["time_ms"] = time_ms
    return Dataset(
        name="synthetic",
        user_ids=tuple(str(number) for number in range(1, num_users + 1)),
        user=user[order],
        events=events[order],
        actions=tuple(f"rating_{value}" for value in range(1, len(RATING_SHARES) + 1)),
        items=table,
        side_features=side_features,
        context_features=(
            ContextFeature(name="age", num_values=NUM_AGES),
            ContextFeature(name="gender", num_values=NUM_GENDERS, values=("F", "M")),
            ContextFeature(name="occupation", num_values=NUM_OCCUPATIONS),
            ContextFeature(name="hour", num_values=24, derive="hour_utc"),
        ),
        user_context=user_context,
        tasks=(
            Task(name="like", kind="binary", value_at_least=4),
            Task(name="rating", kind="regression", loss_weight=0.1, center=3.5),
        ),
        blend={"like": 1.0, "rating": 0.05},
    )


def _items(
    rng: np.random.Generator, num_items: int
) -> tuple[ItemTable, tuple[SideFeature, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Item table, its side features, [num_items, NUM_FACTORS] factors that follow the genres, [num_items] quality."""
    genres = (rng.random((num_items, NUM_GENRES)) < 1.7 / NUM_GENRES).astype(np.uint8)
    year = rng.integers(0, NUM_YEARS + 1, num_items)
    genre_factor = rng.normal(size=(NUM_GENRES, NUM_FACTORS))
    factor = genres @ genre_factor / np.sqrt(np.maximum(genres.sum(1, keepdims=True), 1))
    factor = 0.8 * factor + 0.6 * rng.normal(size=(num_items, NUM_FACTORS))
    table = ItemTable(
        item_id=np.arange(1, num_items + 1, dtype=np.int64),
        titles=tuple(f"Item {number}" for number in range(1, num_items + 1)),
        side={"genres": genres, "year": year},
    )
    features = (
        SideFeature(name="genres", kind="tags", vocabulary=tuple(f"genre_{index}" for index in range(NUM_GENRES))),
        SideFeature(
            name="year",
            kind="category",
            vocabulary=tuple(f"{first}-{first + 4}" for first in range(1940, 1940 + 5 * NUM_YEARS, 5)),
        ),
    )
    return table, features, factor, 0.7 * rng.normal(size=num_items)


def _times(rng: np.random.Generator, history_len: NDArray[np.int64]) -> NDArray[np.int64]:
    """[num_events] whole seconds, in ms: users arrive over the period, rate in bursts and may come back days later."""
    num_events = int(history_len.sum())
    gap_s = 1 + rng.exponential(30, num_events).astype(np.int64)
    gap_s += np.where(rng.random(num_events) < 0.02, rng.exponential(5 * 86_400, num_events), 0).astype(np.int64)
    gap_s[rng.random(num_events) < TIE_SHARE] = 0
    first = np.cumsum(history_len) - history_len
    since_all = np.cumsum(gap_s)
    since_first = since_all - np.repeat(since_all[first], history_len)
    arrival_s = rng.integers(0, PERIOD_S, len(history_len))
    time_ms: NDArray[np.int64] = START_MS + 1000 * (np.repeat(arrival_s, history_len) + since_first)
    return time_ms
