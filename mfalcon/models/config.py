"""What a model is, as data: the content of a checkpoint's `config.json`. Unknown keys are refused."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mfalcon.pairs import Pairs

_MAX_NUMBER = 1e30
"""Of what a task learns or an event carries, so that a blend of such numbers fits float32."""

Positive = Annotated[int, Field(gt=0)]
Width = Annotated[int, Field(gt=0, le=65_536)]
"""Of a vector. It and the other limits are far above any model in use: what is beyond is a mistake or an attack."""
Number = Annotated[float, Field(ge=-_MAX_NUMBER, le=_MAX_NUMBER)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Frozen(BaseModel):
    """Data from outside: immutable, and a mistyped key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AttentionKind = Literal["pointwise", "softmax"]


class RelativeBiasConfig(Frozen):
    """rab^{p,t} of the HSTU paper (section 3.2): a bias by distance and one by log-bucketed time difference."""

    num_positions: int = Field(gt=0, le=1 << 22)
    """Distances from 0 to num_positions - 1; farther tokens share the last one."""
    num_time_buckets: int = Field(default=64, gt=0, le=4_096)
    time_bucket_width: float = Field(default=0.301, ge=1e-6, le=1e3)
    """Natural-log units per bucket: bucket = floor(ln(max(1, dt)) / width)."""
    time_unit_ms: int = Field(default=1000, gt=0, le=10**12)


class RopeConfig(Frozen):
    """Rotary positions (RoFormer, arXiv 2104.09864): a token turns its queries and keys by its place in the window."""

    base: float = Field(default=10_000.0, ge=1, le=1e9)
    """Neighbours 2i and 2i + 1 of a head turn by position * base ** (-2i / qk_dim)."""


class AlibiConfig(Frozen):
    """A bias that falls with the distance, at a fixed slope a head (ALiBi, arXiv 2108.12409)."""

    num_positions: int = Field(gt=0, le=1 << 22)
    """Distances from 0 to num_positions - 1; farther tokens share the last one."""


class LayerConfig(Frozen):
    """One HSTU layer. The defaults are ours; golden tests configure Meta's two public variants."""

    dim: Width
    num_heads: int = Field(gt=0, le=1_024)
    qk_dim: Width
    """Head dimension of queries and keys."""
    v_dim: Width
    """Head dimension of values."""
    attention: AttentionKind = "pointwise"
    """Weights of what a token sees: SiLU of each logit, as in the HSTU paper, or a softmax over all of them."""
    attention_norm: float = Field(ge=1e-6, le=1e9)
    """Constant that divides the attention weights; never a length of the batch (law 4). 1 with softmax."""
    logit_scale: float | None = Field(default=None, ge=-1e6, le=1e6)
    """Multiplies q.k; None is 1/sqrt(qk_dim)."""
    activation: Literal["uvqk", "u"] = "uvqk"
    """Which projections pass through SiLU."""
    norm_affine: bool = True
    norm_eps: float = Field(default=1e-6, ge=1e-12, le=1)
    uvqk_bias: bool = True
    output: Literal["gated", "concat"] = "gated"
    """gated: o(u * LN(av)); concat: o([u, av, u * LN(av)])."""
    output_bias: bool = True
    bias: RelativeBiasConfig | None = None
    rope: RopeConfig | None = None
    """Beside bias, if both are given."""
    alibi: AlibiConfig | None = None
    """In the place of bias, and of rope."""
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _has_a_form(self) -> Self:
        if self.attention == "softmax" and self.attention_norm != 1:
            raise ValueError(
                f"layer: attention_norm is {self.attention_norm:g}, must be 1 with softmax, whose weights add up to 1"
            )
        if self.rope is not None and self.qk_dim % 2:
            raise ValueError(f"layer: qk_dim is {self.qk_dim}, must be even with rope, which turns pairs of numbers")
        if self.alibi is not None and (self.bias is not None or self.rope is not None):
            beside = "bias" if self.bias is not None else "rope"
            raise ValueError(f"layer: must have either alibi or {beside}: each says how far apart tokens are")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether attention is pointwise, and knows positions by bias alone."""
        return self.attention == "pointwise" and self.rope is None and self.alibi is None


class ReachConfig(Frozen):
    """What one layer sees of the history, in tokens: a local window and the first tokens (the semi-local attention of
    ULTRA-HSTU, arXiv 2602.16986), and how much of it counts for targets (its attention truncation).
    """

    tokens: int = Field(gt=0, le=1 << 21)
    """A token of the history sees itself and so many before it."""
    targets: int | None = Field(default=None, gt=0, le=1 << 21)
    """A target sees itself and so many of the newest tokens, the prefix length of the layer; None: as `tokens`."""
    first: int = Field(default=0, ge=0, le=1 << 21)
    """Both also see so many of the first tokens of the window."""

    @property
    def of_targets(self) -> int:
        """What `targets` stands for."""
        return self.tokens if self.targets is None else self.targets

    @property
    def most_seen(self) -> tuple[int, int]:
        """Keys that a token of the history sees at most, and that a target sees."""
        return self.first + self.tokens + 1, self.first + self.of_targets


class DinConfig(Frozen):
    """A DLRM-style ranker: DIN's activation unit over the last events (arXiv 1706.06978), the low-rank cross layers of
    DCN-V2 (arXiv 2008.13535), and the experts, gates and towers of MMoE (KDD 2018).
    """

    dim: int = Field(gt=0, le=4_096)
    """Width of an event and of a candidate where the two meet."""
    context_dim: int = Field(default=8, gt=0, le=4_096)
    """Width of each context feature."""
    side_fields: bool = False
    """Whether each side feature of a candidate is also a field of its own, of width `dim`."""
    activation: tuple[Annotated[int, Field(gt=0, le=4_096)], ...] = Field(min_length=1, max_length=8)
    """Hidden widths of the activation unit."""
    num_pools: int = Field(default=1, gt=0, le=64)
    """Weighted sums that the activation unit makes of the events."""
    num_cross_layers: int = Field(gt=0, le=64)
    cross_rank: int = Field(gt=0, le=16_384)
    num_experts: int = Field(gt=0, le=256)
    experts: tuple[Annotated[int, Field(gt=0, le=16_384)], ...] = Field(min_length=1, max_length=8)
    """Widths of the layers of every expert. The hidden width of the towers is `RankerConfig.head_dim`."""


class LumConfig(Frozen):
    """What a large user model is asked: conditions, each an outcome of a task and a category of items, or any
    (`mfalcon/models/conditions.py`).
    """

    task: Name
    """The binary task whose two labels are the outcomes."""
    category: Name | None = None
    """The side feature whose values are the categories; None for any item alone."""


EmbeddingKind = Literal["table", "robe-v0", "robe-mix"]
_BYTES_PER_MB, _NUMBER_BYTES, _MOST_NUMBERS = 1_000_000, 4, (1 << 31) - 1


class AnchorConfig(Frozen):
    """Where a DLRM-v3 counts from whose states outlive a request: not from the history's end and the request."""

    num_events: int = Field(gt=0, le=1 << 20)
    """A history of so many events has the trainer's own positions; of any other one they are off by the difference."""
    time_s: int = Field(ge=0, lt=1 << 40)
    """The request whose ages events have. Those after it are as if of that time."""
    num_user_tokens: int = Field(ge=0, le=256)
    """Features of the user before the events, whose positions are kept free."""


class DlrmConfig(Frozen):
    """What is around the layers of Meta's DLRM-v3 (generative-recommenders, `DlrmHSTU`)."""

    table_dim: Width
    """Of items and of the user's features."""
    hidden_dim: Width
    """Of the encoders of content and actions."""
    action_dim: Width
    """Of each action; those of an event lie side by side."""
    item_dim: Width
    """Of the hidden layer of the item's own encoder."""
    num_positions: int = Field(gt=0, le=1 << 22)
    """Counted from the end of the history; older events share the last one."""
    num_ages: int = Field(gt=0, le=1 << 22)
    """Buckets of the square root of the minutes before the request."""
    last_age: int = Field(ge=0, le=1 << 22)
    """Shared by all that is older. The trainer's kernels take num_ages - 1, its plain code the width less 1."""
    postprocessor: Literal["timestamp", "layer_norm", "l2"]
    """A hidden target is normed with the periods of the request's time, normed, or made of length 1."""
    periods: tuple[tuple[Annotated[int, Field(gt=0, le=10**9)], Annotated[int, Field(gt=0, le=10**6)]], ...] = ()
    """Seconds of a unit, and units of a period: an hour of 24, a day of 7."""
    min_history: tuple[Annotated[int, Field(ge=0, le=1 << 30)], ...] = ()
    """The length below which each context feature is left out."""
    counted_candidates: int = Field(ge=0, le=1 << 20)
    """Candidates that the trainer's lengths count. A constant: no candidate may move the scores of others."""
    anchor: AnchorConfig | None = None
    """Of the form whose states outlive a request; None of the trainer's own."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.last_age >= self.num_ages:
            raise ValueError(f"dlrm: last_age is {self.last_age}, must be below num_ages, {self.num_ages}")
        if bool(self.periods) != (self.postprocessor == "timestamp"):
            raise ValueError("dlrm: the postprocessor timestamp must have periods, and no other may")
        return self


class RecsysConfig(Frozen):
    """What is around the layers of the HSTU ranker of NVIDIA's recsys-examples."""

    num_actions: int = Field(gt=0, le=1 << 24)
    """Rows of the table of actions."""
    action_weights: tuple[Annotated[int, Field(gt=0, lt=1 << 31)], ...] = Field(max_length=32)
    """Of each action; those of an event add up to its row."""
    num_positions: int = Field(ge=0, le=1 << 22)
    """Tokens from the start of the window; later ones share the last. 0 for a model without."""
    head_widths: tuple[Width, ...] = Field(max_length=16)
    """Hidden layers of the prediction head."""
    head_activation: Literal["relu", "gelu"]


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
    scale: float = Field(default=1.0, ge=1 / _MAX_NUMBER, le=_MAX_NUMBER)


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
    value_scale: float | None = Field(default=None, ge=1 / _MAX_NUMBER, le=_MAX_NUMBER)
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
