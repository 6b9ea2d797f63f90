"""Default recipes: which model and which training for a data set, when the user does not say."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mfalcon.errors import ConfigError
from mfalcon.models.base import PrefixRanker
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import CountersConfig, DenseFeature, EmbeddingConfig, GraphConfig
from mfalcon.models.config_kinds import Frozen
from mfalcon.models.config_layers import AlibiConfig, AttentionKind, LayerConfig, RelativeBiasConfig, RopeConfig
from mfalcon.models.config_parts import DinConfig, LumConfig
from mfalcon.models.registry import architecture, trained_here
from mfalcon.train.dataset import Dataset
from mfalcon.types import Floats

Positive = Annotated[int, Field(gt=0)]
Position = Literal["rab", "rope", "alibi"]
"""How layers know where and when a token is: learned weights of distance and time difference, or of distance alone
rotary positions or ALiBi.
"""

_LEAST_SPREAD = 1e-12
"""Of a feature that is not the same for every event."""


class GraphTraining(Frozen):
    """How a graph of items is made and learnt from (`mfalcon/train/graph.py`)."""

    dim: int = Field(default=32, gt=0, le=1_024)
    """Width of an item's vector."""
    max_events: int = Field(default=30, gt=0, le=1 << 20)
    """Newest events of a history that a candidate is held against; fewer where windows keep fewer."""
    joint: bool = True
    """End to end, with the ranker; if not the graph is learnt first, alone, and its vectors are constants then."""
    neighbours: int = Field(default=20, gt=0, le=1_000)
    """Most of an item."""
    fan_out: int = Field(default=10, gt=0, le=1_000)
    """Neighbours that are drawn of each node in each hop of a training step."""
    most_weight: float = Field(default=1.0, ge=0.01, le=100)
    """That GradNorm may give the auxiliary task."""


class TrainConfig(Frozen):
    """How to train: one-cycle AdamW, weights averaged over steps, best epoch kept by validation AUC."""

    epochs: Positive = 6
    batch_size: Positive = 8
    """Windows per step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    bias_rate: float = Field(default=10.0, gt=0)
    """Factor on the learning rate of rab: its weights are logits and must travel further than others (docs/LOG.md)."""
    weight_decay: float = Field(default=1e-4, ge=0)
    context_dropout: float = Field(default=0.8, ge=0, lt=1)
    """Share of context codes hidden while training, so that a missing feature has a meaning."""
    dense_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of targets whose dense features are hidden while training, so that their absence has a meaning."""
    item_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of items shown as the unknown item while training, so that the reserved row has a meaning."""
    clip_norm: float = Field(default=1.0, gt=0)
    average_decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay per step of the exponential average of the weights; the average is what is validated and kept."""
    patience: Positive = 4
    """Epochs without a better validation AUC before stopping early."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    split: Literal["A", "B"] = "A"
    steps_per_epoch: Positive | None = None
    """Steps of an epoch, in as many or as few passes over the windows as that takes; one pass if not given. Runs on
    histories and shares of different sizes are alike in what they learn from with it."""
    users_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the training users who are learned from, drawn without the seed; all if not given."""
    graph: GraphTraining | None = None
    """Of a model that reads a graph; as usual if not given."""
    visibility: Literal["strict", "order"] = "order"
    """What targets see of events at their own time: nothing, or all before them in order. Learning from the longer
    histories ranks better under either (docs/LOG.md)."""


def train_config(name: str) -> TrainConfig:
    """The default training of an architecture; of `din`, whose windows have one target each, 256 at a time. One that
    learns interests sees no more than it can be asked with: of events of one time the first is told by nothing.
    """
    kind = architecture(name)
    if not kind.ranks_items:
        return TrainConfig(epochs=12, batch_size=16, visibility="strict")
    return TrainConfig() if kind.encodes_prefix else TrainConfig(epochs=3, batch_size=256)


def model_config(
    dataset: Dataset,
    name: str,
    *,
    dim: int | None = None,
    num_layers: int | None = None,
    num_heads: int | None = None,
    max_history: int | None = None,
    window_chunk: int | None = None,
    dropout: float = 0.3,
    counters: CountersConfig | None = None,
    embedding: EmbeddingConfig | None = None,
    graph: GraphTraining | None = None,
    attention: AttentionKind | None = None,
    position: Position | None = None,
) -> RankerConfig:
    """A ranker of architecture `name` for a data set; the defaults are the ML-100K recipes: width 64, 2 layers of 2
    heads and 100 events, moved by 50 (165k parameters), or for `din` width 32 and 30 events.

    attention, position: of the layers; pointwise with rab if not given. SiLU is on u alone with softmax, whose logits
    need either sign.

    counters: that it reads too, of `mfalcon.train.counters.counters_config`. embedding: None for a table. graph: of the
    items, whose vectors it reads too.

    Raises ConfigError if the heads do not share `dim` evenly, for layers, heads or a chunk of a model that has none,
    and for a model that is trained elsewhere.
    """
    kind = architecture(name)
    if not kind.is_trained_here:
        raise ConfigError(f"model: got {name!r}, must be one of {', '.join(trained_here())}: it is trained elsewhere")
    if not issubclass(kind, PrefixRanker):
        for what, given in (
            ("layers", num_layers),
            ("heads", num_heads),
            ("window_chunk", window_chunk),
            ("attention", attention),
            ("position", position),
        ):
            if given is not None:
                raise ConfigError(f"{what}: got {given}, must not be given for {name}, which reads the last events")
        config = _din_config(dataset, name, dim or 32, max_history or 30, dropout, counters)
        return with_graph_of(_embedded(config, dataset, embedding), graph)
    dim, num_layers, num_heads = dim or 64, num_layers or 2, 2 if num_heads is None else num_heads
    max_history, window_chunk = max_history or 100, window_chunk or 50
    if num_heads < 1 or dim % num_heads:
        raise ConfigError(f"dim {dim} is not a multiple of the number of heads, {num_heads}")
    head, num_positions = dim // num_heads, max_history * kind.tokens_per_event + 1
    if position == "rope" and head % 2:
        raise ConfigError(f"dim {dim} over {num_heads} heads: must be even with rope, is {head}")
    layer = LayerConfig(
        dim=dim,
        num_heads=num_heads,
        qk_dim=head,
        v_dim=head,
        attention=attention or "pointwise",
        attention_norm=1.0 if attention == "softmax" else max_history / 8,
        activation="u" if attention == "softmax" else "uvqk",
        bias=RelativeBiasConfig(num_positions=num_positions) if position in (None, "rab") else None,
        rope=RopeConfig() if position == "rope" else None,
        alibi=AlibiConfig(num_positions=num_positions) if position == "alibi" else None,
        dropout=dropout,
    )
    config = _ranker_config(dataset, name, layer, num_layers, None, dim, max_history, window_chunk, dropout, counters)
    return with_graph_of(_embedded(config, dataset, embedding), graph)


def with_graph_of(config: RankerConfig, graph: GraphTraining | None) -> RankerConfig:
    """With the vectors of a graph too, of whose likes the first binary task is. Raises ValidationError for a model that
    can have none.
    """
    if graph is None:
        return config
    binary = [task.name for task in config.tasks if task.kind == "binary"]
    if not binary:
        raise ConfigError("--graph: the data set has no binary task, whose positive events are likes")
    most = config.max_history - config.window_chunk + 1
    read = GraphConfig(dim=graph.dim, task=binary[0], max_events=min(graph.max_events, most), joint=graph.joint)
    return RankerConfig.model_validate(config.model_dump() | {"graph": read.model_dump()})


def _embedded(config: RankerConfig, dataset: Dataset, embedding: EmbeddingConfig | None) -> RankerConfig:
    """With the vectors of items where they are to be."""
    if embedding is None or embedding.kind == "table":
        return config
    counted = embedding.model_copy(update={"num_ids": len(np.unique(dataset.events["item_id"]))})
    return RankerConfig.model_validate(config.model_dump() | {"embedding": counted.model_dump()})


def _din_config(
    dataset: Dataset, name: str, dim: int, max_history: int, dropout: float, counters: CountersConfig | None
) -> RankerConfig:
    din = DinConfig(
        dim=dim,
        activation=(dim,),
        num_pools=2,
        num_cross_layers=2,
        cross_rank=dim,
        num_experts=2,
        experts=(4 * dim, 2 * dim),
    )
    return _ranker_config(dataset, name, None, 0, din, dim, max_history, 1, dropout, counters)


def _ranker_config(
    dataset: Dataset,
    name: str,
    layer: LayerConfig | None,
    num_layers: int,
    din: DinConfig | None,
    head_dim: int,
    max_history: int,
    window_chunk: int,
    dropout: float,
    counters: CountersConfig | None,
) -> RankerConfig:
    """What follows of the data set, around what the architecture needs."""
    single_action, ranks_items = len(dataset.actions) == 1, architecture(name).ranks_items
    values = dataset.events["value"]
    return RankerConfig(
        name=f"{dataset.name}-{name}",
        architecture=name,
        num_layers=None if layer is None else num_layers,
        layer=layer,
        din=din,
        actions=dataset.actions,
        value_center=float(np.mean(values)) if single_action else 0.0,
        value_scale=float(np.std(values)) or None if single_action else None,
        side_features=dataset.side_features,
        context_features=dataset.context_features if ranks_items else (),
        dense_features=tuple(_dense_feature(name, column) for name, column in dataset.dense.items())
        if ranks_items
        else (),
        counters=counters,
        lum=None if ranks_items else _lum_config(dataset),
        tasks=dataset.tasks,
        blend=dict(dataset.blend),
        head_dim=head_dim,
        num_items=dataset.items.num_rows,
        max_history=max_history,
        window_chunk=window_chunk,
        dropout=dropout,
    )


def _lum_config(dataset: Dataset) -> LumConfig:
    """The outcomes of the first binary task, by the first side feature of tags, or else of categories. Raises
    ConfigError.
    """
    binary = [task.name for task in dataset.tasks if task.kind == "binary"]
    if not binary:
        raise ConfigError("tasks: the data set has no binary task, whose labels are the outcomes of conditions")
    by_kind = sorted(dataset.side_features, key=lambda feature: feature.kind != "tags")
    return LumConfig(task=binary[0], category=by_kind[0].name if by_kind else None)


def _dense_feature(name: str, column: Floats) -> DenseFeature:
    """Standardised over the events of a data set."""
    known = column[~np.isnan(column)].astype(np.float64)
    spread = float(np.std(known))
    return DenseFeature(name=name, center=float(np.mean(known)), scale=spread if spread > _LEAST_SPREAD else 1.0)
