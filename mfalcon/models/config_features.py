"""What a model reads of items, requests and counters, as data."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mfalcon.models.config_kinds import MAX_NUMBER, Frozen, Name, Number

EmbeddingKind = Literal["table", "robe-v0", "robe-mix"]
_BYTES_PER_MB, _NUMBER_BYTES, _MOST_NUMBERS = 1_000_000, 4, (1 << 31) - 1


class EmbeddingConfig(Frozen):
    """Where the vectors of item ids are: each in a row of its own, or all in one array of any size (ROBE, arXiv
    2108.02191), which gives every 64-bit id a vector.
    """

    kind: EmbeddingKind = "table"
    """`robe-v0` hashes as published, and gives ids the vectors of others; `robe-mix` hashes each block by itself."""
    memory_mb: float | None = Field(default=None, gt=0)
    """Of the array, 10^6 bytes in float32."""
    block: int = Field(default=32, gt=0, le=65_536)
    """Numbers of a vector that lie side by side; at most the vector's width."""
    features: tuple[Name, ...] = Field(default=(), max_length=256)
    """Side features, of the kind "category", whose values have their vectors in the array too."""
    num_ids: int | None = Field(default=None, ge=0, le=1 << 62)
    """Different ids in what the model was trained on, for who asks what a table would take."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "table":
            if self.memory_mb is not None or self.features:
                raise ValueError("embedding: memory_mb and features are of robe-v0 and robe-mix, kind is table")
        elif self.memory_mb is None:
            raise ValueError(f"embedding: {self.kind} needs memory_mb")
        elif not self.block <= self.num_numbers <= _MOST_NUMBERS:
            least, most = (_NUMBER_BYTES * numbers / _BYTES_PER_MB for numbers in (self.block, _MOST_NUMBERS))
            raise ValueError(f"embedding: memory_mb is {self.memory_mb:g}, must be from {least:g} to {most:.0f}")
        return self

    @property
    def num_numbers(self) -> int:
        """Of the array; 0 of a table."""
        return int(round((self.memory_mb or 0) * _BYTES_PER_MB) / _NUMBER_BYTES)


class SideFeature(Frozen):
    """An item side feature: one value of a vocabulary ("category") or any subset of it ("tags")."""

    name: Name
    kind: Literal["category", "tags"]
    vocabulary: tuple[str, ...]


class ContextFeature(Frozen):
    """A request-context feature: an integer code that rides with the targets and never touches the prefix."""

    name: Name
    num_values: int = Field(gt=0, le=1 << 24)
    values: tuple[str, ...] = ()
    """Names of the codes, if they have any."""
    derive: Literal["hour_utc", "period"] | None = None
    """Computed from the request time when the caller does not give it: the hour, or which unit of a period it is."""
    unit_s: int | None = Field(default=None, gt=0, le=10**9)
    """Seconds of a unit of a period that has `num_values` of them."""

    @model_validator(mode="after")
    def _names_match(self) -> Self:
        if (self.derive == "period") != (self.unit_s is not None):
            raise ValueError(f"context feature {self.name}: a period must have unit_s, and nothing else may")
        if self.values and len(self.values) != self.num_values:
            raise ValueError(f"context feature {self.name}: {len(self.values)} names for {self.num_values} values")
        return self


class DenseFeature(Frozen):
    """A number of each candidate of a request, which meets it behind the layers: the caller's, in any unit. The model
    reads (value - center) / scale.
    """

    name: Name
    center: Number = 0.0
    scale: float = Field(default=1.0, ge=1 / MAX_NUMBER, le=MAX_NUMBER)


COUNTERS = (
    *("user_events", "user_like_rate", "user_mean_value", "user_tag_value", "user_tag_events", "user_idle"),
    *("item_events", "item_like_rate", "item_mean_value"),
)
"""The streaming counters, in the order of a model: mfalcon/features/counters.py says what each is."""


class CountersConfig(Frozen):
    """That a model reads the streaming counters, behind the dense features of the caller, and what they are."""

    task: Name
    """The binary task whose positive events are likes."""
    max_events: int = Field(default=4_096, gt=0, le=1 << 20)
    """Newest events of a history that count for its user."""
    tags: tuple[Name, ...] = Field(default=(), max_length=256)
    """Side features whose values an event and a candidate may share."""
    like_rate: float = Field(ge=0, le=1)
    """Of a user or an item without events."""
    mean_value: Number = 0.0
    like_weight: float = Field(default=5.0, gt=0, le=1e6)
    """Events that the rate of likes, the mean value, and the mean value by tags are smoothed with."""
    value_weight: float = Field(default=3.0, gt=0, le=1e6)
    tag_weight: float = Field(default=2.0, gt=0, le=1e6)
    features: tuple[DenseFeature, ...]
    """Center and scale of each of `COUNTERS`, in that order."""

    @model_validator(mode="after")
    def _has_all(self) -> Self:
        names = tuple(feature.name for feature in self.features)
        if names != COUNTERS:
            raise ValueError(f"counters: features are {names}, must be {COUNTERS}")
        return self


class GraphConfig(Frozen):
    """That a model reads graph vectors of items, behind the dense features and the counters: those of the candidate,
    and how they meet the ones that its user acted on lately (`mfalcon/features/graph.py`).
    """

    dim: int = Field(default=32, gt=0, le=1_024)
    """Width of an item's vector."""
    task: Name
    """The binary task whose positive events are likes."""
    max_events: int = Field(default=30, gt=0, le=1 << 20)
    """Newest events of a history that are its user's; no more than every window keeps."""
    joint: bool = True
    """Whether the graph's network learnt with the ranker. If not its vectors were constants then, and no newer ones can
    be made of it."""

    @property
    def features(self) -> tuple[DenseFeature, ...]:
        """What the model reads of each candidate."""
        levels = ("graph_item", "graph_like", "graph_dislike")
        return tuple(DenseFeature(name=f"{level}_{index}") for level in levels for index in range(self.dim))
