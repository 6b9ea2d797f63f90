"""Small random checkpoints and histories for the tests of the core: every option on, weights large enough to matter."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mfalcon.algorithm import score, user_state
from mfalcon.backends.select import any_reference
from mfalcon.features.counters import LikeRule
from mfalcon.features.provider import Asked, FeatureProvider
from mfalcon.models.base import EventTokens, PrefixRanker, Ranker, Targets, TaskRanker, context_codes, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_features import (
    COUNTERS,
    ContextFeature,
    CountersConfig,
    DenseFeature,
    EmbeddingConfig,
    GraphConfig,
    SideFeature,
)
from mfalcon.models.config_layers import LayerConfig, RelativeBiasConfig
from mfalcon.models.config_parts import AnchorConfig, DinConfig, DlrmConfig, LumConfig, RecsysConfig
from mfalcon.models.items import ItemTable
from mfalcon.models.registry import architecture as registered
from mfalcon.models.registry import build
from mfalcon.types import EVENT_DTYPE, Events, Ids, RankRequest, no_events
from mfalcon.window import WindowRule

CPU = torch.device("cpu")
ACTIONS = ("click", "like", "share")
GENRES = ("comedy", "drama", "horror", "war")
DECADES = ("1980s", "1990s")
CONTEXT_FEATURES = (
    ContextFeature(name="surface", num_values=3),
    ContextFeature(name="hour", num_values=24, derive="hour_utc"),
)
PERIODS = ((3600, 24), (86_400, 7))
DENSE_FEATURES = (DenseFeature(name="price", center=0.5, scale=2.0), DenseFeature(name="rank_before"))
NUM_ITEMS = 31
START_MS = 10**12
NOW_MS = START_MS + 10**10


def small_config(
    architecture: str = "dfgr",
    *,
    max_history: int = 24,
    window_chunk: int = 8,
    num_layers: int = 2,
    with_counters: bool = False,
    embedding: EmbeddingConfig | None = None,
    with_graph: bool = False,
) -> RankerConfig:
    """A ranker of every feature: d_qk != d_v, side, context and dense features of each kind, values, two tasks."""
    kind = registered(architecture)
    layer, network, around, of_recsys = None, None, None, None
    if kind.config_part == "dlrm":
        layer, around = small_dlrm(max_history, has_anchor=kind.encodes_prefix)
    elif kind.config_part == "recsys":
        layer, of_recsys = small_recsys(max_history)
    elif issubclass(kind, PrefixRanker):
        num_positions = max_history * kind.tokens_per_event - 3  # so that the last one is shared
        layer = LayerConfig(
            dim=12,
            num_heads=2,
            qk_dim=4,
            v_dim=7,
            attention_norm=max_history / 4,
            bias=RelativeBiasConfig(num_positions=num_positions, num_time_buckets=64),
            dropout=0.2,
        )
    else:
        network = DinConfig(
            dim=12,
            context_dim=3,
            side_fields=True,
            activation=(7, 5),
            num_pools=2,
            num_cross_layers=2,
            cross_rank=4,
            num_experts=3,
            experts=(11, 6),
        )
    return RankerConfig(
        name="small",
        architecture=architecture,
        num_layers=num_layers if layer is not None else None,
        layer=layer,
        din=network,
        lum=None if kind.ranks_items else LumConfig(task="like", category="genres"),
        dlrm=around,
        recsys=of_recsys,
        actions=ACTIONS,
        value_center=3.3,
        value_scale=1.7,
        side_features=(
            SideFeature(name="genres", kind="tags", vocabulary=GENRES),
            SideFeature(name="decade", kind="category", vocabulary=DECADES),
        ),
        context_features=context_of(kind),
        dense_features=DENSE_FEATURES if kind.ranks_items and kind.config_part is None else (),
        dense_dim=5,
        counters=small_counters() if with_counters else None,
        graph=GraphConfig(dim=4, task="like", max_events=9) if with_graph else None,
        tasks=(
            Task(name="like", kind="binary", value_at_least=4),
            Task(name="rating", kind="regression", center=3.5, loss_weight=0.1),
        ),
        blend={"like": 1.0, "rating": 0.05},
        head_dim=9,
        num_items=NUM_ITEMS + 1,
        embedding=embedding,
        max_history=max_history,
        window_chunk=window_chunk if kind.encodes_prefix else 1,
        dropout=0.1,
    )


def with_attention(config: RankerConfig, attention: str, **position: object) -> RankerConfig:
    """A configuration of layers, with another form of attention and nothing to know positions by but what is given."""
    assert config.layer is not None
    norm = 1.0 if attention == "softmax" else config.layer.attention_norm
    form = {"attention": attention, "attention_norm": norm, "bias": None, **position}
    return RankerConfig.model_validate(config.model_dump() | {"layer": config.layer.model_dump() | form})


def context_of(kind: type[Ranker]) -> tuple[ContextFeature, ...]:
    """What a model of a class reads of a request."""
    if kind.config_part == "dlrm" and kind.encodes_prefix:
        return tuple(ContextFeature(name=f"unit_{s}", num_values=n, derive="period", unit_s=s) for s, n in PERIODS)
    return CONTEXT_FEATURES if kind.ranks_items and kind.config_part != "recsys" else ()


def small_recsys(max_history: int) -> tuple[LayerConfig, RecsysConfig]:
    """Layers as recsys-examples has them, and what is around them; the tables' ends are met."""
    layer = LayerConfig(
        dim=12, num_heads=2, qk_dim=4, v_dim=4, attention_norm=max_history / 4, norm_eps=1e-5, output_bias=False
    )
    around = RecsysConfig(
        num_actions=5,
        action_weights=(1, 2, 4),
        num_positions=2 * max_history - 3,
        head_widths=(7,),
        head_activation="gelu",
    )
    return layer, around


def small_dlrm(max_history: int, *, has_anchor: bool = False) -> tuple[LayerConfig, DlrmConfig]:
    """Layers of DLRM-v3, whose width is not that of its tables, and what is around them; the tables' ends are met."""
    layer = LayerConfig(
        dim=10,
        num_heads=2,
        qk_dim=4,
        v_dim=7,
        attention_norm=max_history / 4,
        activation="u",
        output="concat",
        output_bias=False,
    )
    around = DlrmConfig(
        table_dim=12,
        hidden_dim=9,
        action_dim=3,
        item_dim=11,
        num_positions=max_history - 3,
        num_ages=40,
        last_age=30,
        postprocessor="timestamp",
        periods=PERIODS,
        min_history=() if has_anchor else (0, 9),
        counted_candidates=4,
        anchor=AnchorConfig(num_events=max_history // 2, time_s=10**9, num_user_tokens=2) if has_anchor else None,
    )
    return layer, around


def small_embedding(kind: Literal["robe-v0", "robe-mix"] = "robe-mix") -> EmbeddingConfig:
    """200 numbers for every item and every decade, in blocks that do not fill a vector."""
    return EmbeddingConfig(kind=kind, memory_mb=800e-6, block=5, features=("decade",), num_ids=NUM_ITEMS)


def small_counters() -> CountersConfig:
    """Counters that see less of a history than the window."""
    features = tuple(DenseFeature(name=name, center=0.5, scale=1.5) for name in COUNTERS)
    tags = ("genres", "decade")
    return CountersConfig(task="like", max_events=17, tags=tags, like_rate=0.4, mean_value=3.1, features=features)


def small_items(seed: int = 0, num_items: int = NUM_ITEMS) -> ItemTable:
    """Sparse raw ids, some negative, one huge; titles that are not ASCII."""
    rng = np.random.default_rng(seed)
    ids = np.unique(rng.integers(-(10**6), 10**6, 4 * num_items))[: num_items - 1]
    return ItemTable(
        item_id=np.append(ids, np.int64(2**62)),
        titles=tuple("" if i == 3 else f"Ítem {i}" for i in range(num_items)),
        side={
            "genres": (rng.random((num_items, len(GENRES))) < 0.4).astype(np.uint8),
            "decade": rng.integers(0, len(DECADES) + 1, num_items),
        },
    )


def small_checkpoint(
    architecture: str = "dfgr", dtype: torch.dtype = torch.float64, seed: int = 0, config: RankerConfig | None = None
) -> Checkpoint:
    """A loaded checkpoint with random weights, as `load` would return it."""
    config = config or small_config(architecture)
    items = small_items(seed) if config.num_items > 1 else ItemTable(np.empty(0, dtype=np.int64), (), {})
    torch.manual_seed(seed)
    model = build(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.4)
    model.items.load_items(items)
    model.cast(dtype)
    items = replace(items, is_open=config.shared is not None)
    return Checkpoint(model, items, f"fingerprint-{architecture}-{seed}")


def task_model(checkpoint: Checkpoint) -> TaskRanker:
    """The model of a checkpoint whose targets have heads."""
    assert isinstance(checkpoint.model, TaskRanker)
    return checkpoint.model


def random_events(length: int, seed: int = 0, start_ms: int = START_MS) -> Events:
    """A history on the small item table, one item in ten unknown; half of the events share their time with the one
    before.
    """
    rng = np.random.default_rng(seed)
    events = np.zeros(length, dtype=EVENT_DTYPE)
    events["item_id"] = np.where(rng.random(length) < 0.1, 5_000_000, rng.choice(small_items().item_id, length))
    events["actions"] = rng.integers(0, 2 ** len(ACTIONS), length)
    events["value"] = rng.integers(1, 6, length)
    events["time_ms"] = start_ms + np.cumsum(rng.integers(0, 2, length) * rng.integers(1, 10**8, length))
    return events


def some_rows(num_targets: int, seed: int = 0) -> Tensor:
    """Item rows of candidates, the reserved row and duplicates among them."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, NUM_ITEMS + 1, num_targets))


def tokens(checkpoint: Checkpoint, events: Events) -> EventTokens:
    return event_tokens(events, checkpoint.items, CPU)


def rank_request(
    user_id: str, candidates: Sequence[int], *, recent: Events | None = None, top_k: int = 0
) -> RankRequest:
    return RankRequest(
        user_id=user_id,
        candidates=np.array(candidates, dtype=np.int64),
        top_k=top_k,
        request_time_ms=NOW_MS,
        recent_events=no_events() if recent is None else recent,
        context={"surface": 1},
    )


def cold_scores(
    checkpoint: Checkpoint, history: Events, request: RankRequest, item_counts: Ids | None = None
) -> Tensor:
    """The oracle of a request: its window encoded from nothing, every candidate in one microbatch. [num_tasks,
    num_targets]. item_counts: of a model with counters, [num_targets, 3].
    """
    config = checkpoint.model.config
    seen = np.concatenate([history, request.recent_events])
    window = seen[WindowRule(config.max_history, config.window_chunk).start(len(seen)) :]
    codes = context_codes(config.context_features, request.context, request.request_time_ms)
    rows = checkpoint.items.rows(request.candidates)
    keys = torch.from_numpy(checkpoint.items.keys(request.candidates))
    with torch.inference_mode():
        dense = None
        graph = checkpoint.model.graph
        if item_counts is not None or graph is not None:
            counts = {} if item_counts is None else {LikeRule.of(config): item_counts}
            asked = Asked(request, rows, history, counts, None if graph is None else graph.rows())
            features = FeatureProvider(config, checkpoint.items).features(asked)
            assert features is not None
            dense = torch.from_numpy(features)
        served, targets = any_reference(checkpoint.model), Targets(keys, torch.from_numpy(codes), dense)
        state = user_state(served, tokens(checkpoint, window), targets.context, request.request_time_ms)
        return score(served, state, targets, request.request_time_ms, max(1, len(rows))).T.double()
