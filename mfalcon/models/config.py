"""What a model is, as data: the content of a checkpoint's `config.json`. Unknown keys are refused."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mfalcon.models.config_features import (
    ContextFeature,
    CountersConfig,
    DenseFeature,
    EmbeddingConfig,
    GraphConfig,
    SideFeature,
)
from mfalcon.models.config_kinds import MAX_NUMBER, Frozen, Name, Number, Positive, Width
from mfalcon.models.config_layers import (
    LayerConfig,
    ReachConfig,
)
from mfalcon.models.config_parts import DinConfig, DlrmConfig, LumConfig, RecsysConfig
from mfalcon.pairs import Pairs


class Task(Frozen):
    """One head: what it learns and how its label follows from an event.

    A binary task is 1 when the event's value is at least `value_at_least`, or when it carries one of `any_action`.
    A regression task learns the event's value.
    """

    name: Name
    kind: Literal["binary", "regression"]
    value_at_least: Number | None = None
    any_action: tuple[str, ...] = ()
    loss_weight: float = Field(default=1.0, ge=0, le=1e6)
    center: Number = 0.0
    """Regression: the head learns value - center."""

    @model_validator(mode="after")
    def _has_one_label(self) -> Self:
        if self.kind == "binary" and (self.value_at_least is None) == (not self.any_action):
            raise ValueError(f"task {self.name}: a binary task needs exactly one of value_at_least and any_action")
        if self.kind == "regression" and (self.value_at_least is not None or self.any_action):
            raise ValueError(f"task {self.name}: a regression task learns the value itself")
        return self


class RankerConfig(Frozen):
    """A whole ranker: tokens, layers, heads and window."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")
    architecture: Name
    """A name of the registry: hstu, dfgr, din, lum, dlrm_v3, dlrm_v3_stable, recsys_hstu."""
    num_layers: int | None = Field(default=None, gt=0, le=256)
    layer: LayerConfig | None = None
    """Both of a model that encodes a history, and of no other."""
    reach: tuple[ReachConfig | None, ...] | None = Field(default=None, min_length=1, max_length=256)
    """Of each layer, from the first on, None for one that sees the whole window. None: all do."""
    din: DinConfig | None = None
    """Of a model that reads the last events with each request; its window moves by one event."""
    lum: LumConfig | None = None
    """Of a model that is asked conditions instead of items. It reads no context and no dense features."""
    dlrm: DlrmConfig | None = None
    """Of a model that encodes the history anew for each request, and whose window moves by one event; but for one that
    has an anchor.
    """
    recsys: RecsysConfig | None = None
    """Of a model of NVIDIA's recsys-examples. It reads no context and no features."""
    actions: tuple[str, ...] = Field(min_length=1, max_length=32)
    """Action vocabulary; bit i of an event's `actions` is actions[i]."""
    value_center: Number = 0.0
    value_scale: float | None = Field(default=None, ge=1 / MAX_NUMBER, le=MAX_NUMBER)
    """The action token also reads (value - value_center) / value_scale; None leaves the value out."""
    side_features: tuple[SideFeature, ...] = Field(default=(), max_length=256)
    context_features: tuple[ContextFeature, ...] = Field(default=(), max_length=256)
    dense_features: tuple[DenseFeature, ...] = Field(default=(), max_length=256)
    counters: CountersConfig | None = None
    """The streaming counters that the model reads too; None for none."""
    graph: GraphConfig | None = None
    """The graph vectors that the model reads too; None for none."""
    dense_dim: Width = 64
    """Of the layer between dense features and the hidden target; `din` has none and reads them as they are."""
    tasks: tuple[Task, ...] = Field(min_length=1, max_length=256)
    blend: dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]]
    """Weight of each task in the one score that ranks."""
    head_dim: Width
    num_items: int = Field(gt=0, le=1 << 31)
    """Rows of the item table, the reserved row 0 included."""
    embedding: EmbeddingConfig | None = None
    """None for a table, as in checkpoints of before there was another kind."""
    options: dict[Name, str | int | float | bool] = Field(default_factory=dict, max_length=256)
    """Of an architecture of another package, which alone reads them."""
    max_history: int = Field(gt=0, le=1 << 20)
    """Most events in a window."""
    window_chunk: Positive
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        tasks = [task.name for task in self.tasks]
        for what, names in (
            ("task", tasks),
            ("context feature", [f.name for f in self.context_features]),
            ("side feature", [f.name for f in self.side_features]),
            ("dense feature", [f.name for f in self.dense_inputs]),
            ("action", list(self.actions)),
        ):
            if len(set(names)) != len(names):
                raise ValueError(f"duplicate {what} name in {names}")
        if not self.blend or not set(self.blend) <= set(tasks):
            raise ValueError(f"blend names {sorted(self.blend)}, the tasks are {tasks}")
        for task in self.tasks:
            if not set(task.any_action) <= set(self.actions):
                raise ValueError(f"task {task.name}: any_action {task.any_action} is not in {self.actions}")
        if self.window_chunk > self.max_history:
            raise ValueError(f"window_chunk {self.window_chunk} is larger than max_history {self.max_history}")
        self._check_kind()
        self._check_reach()
        categories = {feature.name for feature in self.side_features if feature.kind == "category"}
        if self.embedding is not None and not set(self.embedding.features) <= categories:
            raise ValueError(f"embedding: features {list(self.embedding.features)} must be of {sorted(categories)}")
        if self.counters is not None:
            self._check_counters(self.counters)
        if self.graph is not None:
            self._check_graph(self.graph)
        if self.lum is not None:
            self._check_lum(self.lum)
        if self.dlrm is not None:
            self._check_dlrm(self.dlrm)
        if self.recsys is not None:
            self._check_recsys(self.recsys)
        return self

    def _check_reach(self) -> None:
        if self.reach is None:
            return
        if self.layer is None or self.dlrm is not None:
            raise ValueError("reach: must be given only for a model that encodes a history from its first event on")
        if len(self.reach) != self.num_layers:
            raise ValueError(f"reach: has {len(self.reach)} entries, must have {self.num_layers}, one of each layer")

    def _check_lum(self, lum: LumConfig) -> None:
        binary, side = [task.name for task in self.tasks if task.kind == "binary"], [f.name for f in self.side_features]
        if lum.task not in binary:
            raise ValueError(f"lum: task {lum.task!r} is none of the binary tasks {binary}")
        if lum.category is not None and lum.category not in side:
            raise ValueError(f"lum: category {lum.category!r} is none of the side features {side}")
        if self.din is not None:
            raise ValueError("lum: must have layer, and not din")
        if self.shared is not None:
            raise ValueError(f"lum: embedding is {self.shared.kind}, must be a table, whose rows can be counted")
        if self.context_features or self.dense_inputs:
            raise ValueError("lum: must have no context features, dense features, counters or graph")

    def _check_dlrm(self, dlrm: DlrmConfig) -> None:
        num = 0 if dlrm.anchor is not None else len(self.context_features)
        if dlrm.anchor is not None and len(self.context_features) != len(dlrm.periods):
            raise ValueError(f"dlrm: with an anchor the context must be its {len(dlrm.periods)} periods")
        if len(dlrm.min_history) != num:
            raise ValueError(f"dlrm: min_history has {len(dlrm.min_history)} numbers, must have one of {num} features")
        if self.layer is None or self.layer.bias is not None or self.lum is not None or self.dense_inputs:
            raise ValueError("dlrm: must have layer without bias, no lum, no dense features and no counters")
        if not self.layer.is_plain:
            raise ValueError("dlrm: must have layer with pointwise attention, without rope and alibi")

    def _check_recsys(self, recsys: RecsysConfig) -> None:
        if len(recsys.action_weights) != len(self.actions):
            raise ValueError(f"recsys: {len(recsys.action_weights)} action_weights, must be of {len(self.actions)}")
        if self.layer is None or self.layer.bias is not None or self.lum is not None or self.shared is not None:
            raise ValueError("recsys: must have layer without bias, no lum, and a table of items")
        if self.context_features or self.dense_inputs:
            raise ValueError("recsys: must have no context features, dense features, counters or graph")

    def _check_counters(self, counters: CountersConfig) -> None:
        binary, side = [task.name for task in self.tasks if task.kind == "binary"], [f.name for f in self.side_features]
        if counters.task not in binary:
            raise ValueError(f"counters: task {counters.task!r} is none of the binary tasks {binary}")
        if not set(counters.tags) <= set(side) or len(set(counters.tags)) != len(counters.tags):
            raise ValueError(f"counters: tags {list(counters.tags)} must be different ones of {side}")

    def _check_graph(self, graph: GraphConfig) -> None:
        binary = [task.name for task in self.tasks if task.kind == "binary"]
        if graph.task not in binary:
            raise ValueError(f"graph: task {graph.task!r} is none of the binary tasks {binary}")
        if self.shared is not None:
            raise ValueError(
                f"graph: embedding is {self.shared.kind}, must be a table, whose rows are the graph's nodes"
            )
        if graph.max_events > (least := self.max_history - self.window_chunk + 1):
            raise ValueError(
                f"graph: max_events is {graph.max_events}, must be at most {least}: every window has those"
            )

    @property
    def dense_inputs(self) -> tuple[DenseFeature, ...]:
        """What the model reads of each candidate behind the layers: the caller's features, then the counters, then the
        graph's.
        """
        counters = self.counters.features if self.counters is not None else ()
        return self.dense_features + counters + (self.graph.features if self.graph is not None else ())

    @property
    def graph_task(self) -> Task:
        """Whose positive events are likes to the graph."""
        assert self.graph is not None
        [task] = [task for task in self.tasks if task.name == self.graph.task]
        return task

    def _check_kind(self) -> None:
        if (self.layer is None) != (self.num_layers is None):
            raise ValueError("num_layers and layer must be given together")
        if (self.layer is None) == (self.din is None):
            raise ValueError(f"got {'neither' if self.layer is None else 'both'}, must have either layer or din")
        reads_last = self.din is not None or (self.dlrm is not None and self.dlrm.anchor is None)
        if reads_last and self.window_chunk != 1:
            raise ValueError(f"window_chunk: got {self.window_chunk}, must be 1 for a model that reads the last events")

    @property
    def shared(self) -> EmbeddingConfig | None:
        """Of an open vocabulary, in which every id has a vector and no item is unknown; else None."""
        return self.embedding if self.embedding is not None and self.embedding.kind != "table" else None

    @property
    def num_keys(self) -> int:
        """What the model reads of an item is from 0 to below this: its row, or in an open vocabulary its id, which may
        also be any other of 64 bits.
        """
        return self.num_items if self.shared is None else 1 << 62

    @property
    def dim(self) -> int:
        """Width of an item's vector."""
        parts = self.dlrm or self.layer or self.network
        return parts.table_dim if isinstance(parts, DlrmConfig) else parts.dim

    @property
    def stack(self) -> tuple[LayerConfig, int]:
        """The layer and the number of layers of a model that encodes a history."""
        assert self.layer is not None and self.num_layers is not None
        return self.layer, self.num_layers

    @property
    def pairs(self) -> Pairs:
        """How much the layers see of a history, for who counts what attention costs."""
        return Pairs(tuple(None if of is None else of.most_seen for of in self.reach or ()))

    @property
    def network(self) -> DinConfig:
        """What a model is that reads the last events with each request."""
        assert self.din is not None
        return self.din
