"""One model as it is served: a checkpoint, the backend that computes it and the cache of its KV states."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from mfalcon.backends.base import DEVICE_MICROBATCH
from mfalcon.backends.choice import AUTO
from mfalcon.backends.select import PoolBudget, Served, ServedModel, serve_any
from mfalcon.counters.sets import Counted
from mfalcon.engine.device import Device
from mfalcon.engine.histories import Histories
from mfalcon.engine.nearest import NearestItems
from mfalcon.engine.probe import probe
from mfalcon.engine.runner import Runner, live_graph
from mfalcon.engine.warmup import measure_encoding, measure_microbatch, measure_scoring, measure_side_by_side
from mfalcon.features.counters import LikeRule
from mfalcon.history.history import History
from mfalcon.items.excerpt import Excerpt, excerpt, mean_vector
from mfalcon.items.known import GrownItems
from mfalcon.items.live import LiveItems, LiveOptions
from mfalcon.kvcache.cache import KVCache, RemoteTier
from mfalcon.kvcache.fetch import Fetched, Fetcher, LogReader
from mfalcon.kvcache.offload_queue import Offer
from mfalcon.kvcache.planner import Predictor
from mfalcon.metrics.model_states import ModelAnswers, ModelStates
from mfalcon.metrics.states import StateMetrics
from mfalcon.models.base import PrefixRanker
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.conditions import Condition, conditions
from mfalcon.models.config_features import COUNTERS
from mfalcon.models.heads import probability_that_ranks, task_infos
from mfalcon.models.items import ItemTable
from mfalcon.models.lum import LUM
from mfalcon.rerank.likeness import Centred, Likeness, Vectors
from mfalcon.types import CacheInfo, ContextFeatureInfo, Floats, Ids, ModelInfo
from mfalcon.window import WindowRule

_log = logging.getLogger(__name__)
_VERSION_CHARS = 12
_RECENT_USERS = 10_000
"""Remembered for a reload."""


@dataclass(frozen=True, slots=True)
class RankerOptions:
    """name: of the model, its checkpoint's if None. backend: what computes (mfalcon.backends.choice). kv_dtype: of the
    pages of KV states (mfalcon.backends.select.KV_DTYPES).

    microbatch: targets per forward, None to measure the best size at start. kv_budget_bytes: of the states in host
    memory; device_budget_bytes: of those on a GPU, 0 for most of what is free there. write_behind_bytes: of states that
    wait to be written to Redis. live: of item rows that change while the model serves.
    """

    name: str | None = None
    backend: str = AUTO
    kv_dtype: str = "auto"
    microbatch: int | None = None
    kv_budget_bytes: int = 1 << 30
    device_budget_bytes: int = 0
    write_behind_bytes: int = 256 << 20
    live: LiveOptions = field(default_factory=LiveOptions)
    max_candidates: int = 16_384


@dataclass(frozen=True, slots=True)
class Measured:
    """What is found out once of a model on a device. small_candidates: most of a request that is done on one core."""

    microbatch: int
    small_candidates: int
    predictor: Predictor


@dataclass(frozen=True, slots=True)
class Described:
    """items: a table with some items in it at least. likeness: of its rows."""

    items: ItemTable
    likeness: Likeness


class LoadedRanker:
    """Owns what a model needs beside the server's histories and the device: pool, tiers, costs, the way to Redis. A
    model that encodes no history has neither pool nor tiers, and nothing of it is in Redis.
    """

    served: Served
    measured: Measured | None
    remote: RemoteTier | None
    fetcher: LogReader

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: RankerOptions,
        device: Device,
        histories: Histories,
        metrics: StateMetrics,
        predecessor: "LoadedRanker | None" = None,
    ) -> None:
        """predecessor: what is served under this name until now. What was measured of it holds here too if nothing but
        the weights differs, so that nobody waits for it again; its pools too if their pages lie alike. Any thread; the
        event loop calls `start` afterwards.

        Raises ConfigError for a backend that cannot run here, a pool that cannot be allocated, and a window that is
        longer than the log.
        """
        self.checkpoint = checkpoint
        self.options = options
        model = checkpoint.model
        self.name = options.name or model.config.name
        histories.check_window(self.name, model.config.max_history)
        self._like: LikeRule | None = None
        self._counts = False
        if (counters := model.config.counters) is not None:
            histories.check_window(self.name, counters.max_events, "the events that count for a user in the counters")
            self._like = LikeRule.of(model.config)
        redis = histories.redis
        waiting = options.write_behind_bytes if redis is not None else 0
        budget = None
        if isinstance(model, PrefixRanker):
            longest = model.config.max_history * model.tokens_per_event
            budget = PoolBudget(options.kv_budget_bytes + waiting, device.threads, longest, options.device_budget_bytes)
        former = predecessor.served if predecessor is not None else None
        self.served = served = serve_any(model, options.backend, budget, options.kv_dtype, former)
        self.info = _model_info(checkpoint, options, served)
        alike = predecessor is not None and predecessor.checkpoint.model.config == model.config
        measured: Measured | None = predecessor.measured if predecessor is not None and alike else None
        self.measured = measured
        self.probability = probability_that_ranks(model.config.tasks, model.config.blend)
        self.predictor = measured.predictor if measured is not None else Predictor.of(model.config.pairs)
        self._device = device
        self._histories = histories
        self._metrics = metrics
        self._window = WindowRule(model.config.max_history, model.config.window_chunk)
        self._recent: OrderedDict[str, None] = OrderedDict() if predecessor is None else predecessor._recent
        self._answered = ModelAnswers(metrics, self.name)
        self._states: ModelStates | None = None
        self.live = LiveItems(served, checkpoint.items, checkpoint.fingerprint, options.live)
        self.graph = live_graph(model, checkpoint.items, checkpoint.fingerprint)
        self._mean: tuple[str, Floats] = "", np.empty(0, dtype=np.float32)
        """Of the vectors of a version of the item table, by its name."""
        self._cache: KVCache | None = None
        self.remote = None
        longest_wait_s = redis.options.client.timeout_s if redis is not None else 0.0
        if isinstance(served, ServedModel):
            self._cache = cache = self._cache_of(served, waiting)
            self.fetcher = Fetcher(
                histories.log,
                cache,
                self.predictor,
                self._window,
                metrics,
                longest_wait_s,
                is_shared=histories.is_shared,
            )
            self._states = ModelStates(metrics, self.name)
            metrics.pool_pages.labels(self.name).set(served.pool.accounts.num_pages)
            metrics.pool_bytes.labels(self.name).set(served.pool.num_bytes)
            metrics.pool_free_pages.labels(self.name).set(served.pool.accounts.num_free)
            metrics.pool_free_bytes.labels(self.name).set(served.pool.num_free_bytes)
        else:
            self.fetcher = LogReader(histories.log, longest_wait_s)
        metrics.backend.labels(
            model=self.name,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            backend=served.name,
        ).set(1)

    def _cache_of(self, served: ServedModel, waiting: int) -> KVCache:
        """Of the model here, and in Redis if there is one. waiting: bytes of states that wait to be written there."""
        histories, options = self._histories, self.options
        fingerprint = f"{self.checkpoint.fingerprint}:{served.model.dtype}"
        if options.kv_dtype != "auto":
            fingerprint += f":{options.kv_dtype}"
        if options.live.policy.name == "frozen":
            fingerprint += ":frozen"  # its states say nothing of the rows that they were made of
        if histories.redis is not None:
            self.remote = histories.redis.attach(served.model, fingerprint, waiting, histories.tombstones)
        return KVCache(
            fingerprint,
            served.pool,
            options.kv_budget_bytes,
            histories.tombstones,
            host_pool=served.host,
            remote=self.remote if served.model.prefix_stable else None,
            rows=self.live,
        )

    def successor(self, checkpoint: Checkpoint) -> "LoadedRanker":
        """A ranker of another checkpoint under the same name and options. Raises as the constructor does."""
        options = replace(self.options, name=self.name)
        return LoadedRanker(checkpoint, options, self._device, self._histories, self._metrics, self)

    def start(self) -> None:
        """Write to Redis from now on, where there is one that has been started. On the event loop."""
        self.count_items()
        if self.remote is not None and self._histories.redis is not None:
            self._histories.redis.start_writes(self.remote)

    def counted(self, candidates: Ids, reading: Fetched) -> Counted:
        """What is counted of the items of candidates now, for any model that is served. reading: of the asking user,
        the rest of whose log is counted soon.
        """
        if not reading.stale:
            self._histories.counters.notice(reading.history)
        return self._histories.counters.read(candidates)

    def count_items(self) -> None:
        """Have the counters kept that the model reads."""
        if self._like is not None and not self._counts:
            self._histories.counters.require(self._like)
            self._counts = True

    @property
    def prefix(self) -> ServedModel:
        """What is served, of a model that encodes a history."""
        assert isinstance(self.served, ServedModel)
        return self.served

    @property
    def cache(self) -> KVCache:
        """Its states, of a model that encodes a history."""
        assert self._cache is not None
        return self._cache

    @property
    def states(self) -> KVCache | None:
        """Its states; None of a model that encodes no history."""
        return self._cache

    def window_start(self, history: History) -> int:
        """The first event of a history that the model sees."""
        return self._window.start(len(history), history.base)

    @property
    def recent_users(self) -> list[str]:
        """Users of the last requests, the latest first."""
        return list(reversed(self._recent))

    @property
    def may_warm(self) -> bool:
        """Whether one more state may be encoded ahead of the swap, where nothing that is of more use has to go for it.

        There are free pages, twice what requests in flight need; or this model keeps less than a quarter of its pool:
        so much a predecessor on the same pool gives up, of its least recently used states. Nothing warmed has had to go
        yet: that would be the state of a user seen later. A model without states has nothing to warm.
        """
        if self._cache is None:
            return False
        cache, pool = self._cache, self.prefix.pool
        kept = cache.host if cache.device is None else cache.device
        has_pages = pool.accounts.num_free > 2 * pool.reserved or kept.num_bytes < pool.num_bytes // 4
        return has_pages and not kept.num_evicted

    @cached_property
    def likeness(self) -> Likeness:
        """Of the items, for who reranks. Made when it is asked for first, by one thread alone; on a GPU when the model
        is warmed, with a copy of the vectors, because no other thread asks that device for anything.
        """
        model = self.checkpoint.model
        vectors: Vectors = model.items.vectors
        if self._device.device.type == "cuda":
            vectors = vectors(np.arange(model.config.num_items)).__getitem__
        return Likeness(self.checkpoint.items, Centred(vectors, model.config.num_items))

    def described(self, item_ids: Ids) -> Described:
        """What is known of these items now, for one thread beside the device's. Raises what the device does."""
        version = self.live.current
        if not version.number:
            return Described(self.checkpoint.items, self.likeness)

        def look() -> tuple[Excerpt, Floats]:
            name, mean = self._mean
            return excerpt(version, self.checkpoint.items, item_ids), mean if name == version.name else mean_vector(
                version
            )

        found, mean = self._device.call(look).result() if self._device.device.type == "cuda" else look()
        self._mean = version.name, mean
        return Described(found.items, Likeness(found.items, (found.vectors - mean).__getitem__))

    @property
    def listed_items(self) -> ItemTable:
        """All items that it knows now, with their titles, in any thread."""
        items = self.live.current.items
        return items.table if isinstance(items, GrownItems) and len(items.added) else self.checkpoint.items

    @cached_property
    def conditions(self) -> Mapping[str, tuple[int, Condition]]:
        """Row and meaning of each that it is asked, by name; none of a model that ranks items."""
        of_model = conditions(self.checkpoint.model.config)
        return {condition.name: (row, condition) for row, condition in enumerate(of_model)}

    @cached_property
    def nearest(self) -> NearestItems:
        """The items, of a model that is asked conditions. Made as `likeness` is."""
        model = self.checkpoint.model
        assert isinstance(model, LUM)
        return NearestItems(model, self.checkpoint.items)

    def note(self, user_id: str) -> None:
        """A user was seen."""
        self._recent[user_id] = None
        self._recent.move_to_end(user_id)
        if len(self._recent) > _RECENT_USERS:
            self._recent.popitem(last=False)

    def prove(self) -> None:
        """Compare a few scores with the reference backend's. Any thread. Raises CheckpointError."""
        probe(self.served, self.options.kv_dtype)

    def warm(self) -> Runner:
        """Measure the model on its device, and make what runs its jobs. On the device thread."""
        served, num_bytes = self.served, 0
        if isinstance(served, ServedModel):
            num_bytes = served.pool.num_bytes
            if served.batched or self._device.device.type == "cuda":
                served.stack.prepare(served.pool, self.options.microbatch or DEVICE_MICROBATCH)
        if self._device.device.type == "cuda":
            _ = self.likeness if self.checkpoint.model.ranks_items else self.nearest
        self.measured = measured = self.measured or self._measure()
        _log.info(
            "model %s: %d threads, microbatch %d, %s, %d MiB of pages for KV states",
            self.name,
            self._device.threads,
            measured.microbatch,
            f"side by side up to {measured.small_candidates} candidates"
            if measured.small_candidates
            else "no requests side by side",
            num_bytes >> 20,
        )
        items, version, small = self.checkpoint.items, self.info.version, measured.small_candidates
        return Runner(
            served, items, self._cache, measured.microbatch, version, self.predictor, small, self.live, self.graph
        )

    def _measure(self) -> "Measured":
        served, workers, microbatch, small = self.served, self._device.workers, self.options.microbatch, 0
        if served.batched or self._device.device.type == "cuda":
            microbatch = microbatch or DEVICE_MICROBATCH
        else:
            microbatch = microbatch or measure_microbatch(served)
            small = measure_side_by_side(served, workers, microbatch) if workers.num_workers > 1 else 0
        if isinstance(served, ServedModel):
            measure_encoding(served, self.predictor.encode)
        measure_scoring(served, self.predictor.score, microbatch)
        self.predictor.score.settle()
        return Measured(microbatch, small, self.predictor)

    def count(self, cache: CacheInfo | None, num_scored: int = 0, num_failed: int = 0) -> None:
        """Bring the metrics up to date after a request. cache: None of one that looked for no state."""
        self._answered.count(num_scored, num_failed)
        states, counted = self._cache, self._states
        if states is None or counted is None:
            return
        counted.host_bytes.set(states.host.num_bytes)
        counted.host_oldest.set(states.host.oldest_s)
        counted.pool_free_pages.set(self.prefix.pool.accounts.num_free)
        counted.pool_free_bytes.set(self.prefix.pool.num_free_bytes)
        counted.host_evicted.follow(states.host.num_evicted)
        if states.device is not None and states.offload is not None:
            counted.device_bytes.set(states.device.num_bytes)
            counted.device_evicted.follow(states.device.num_evicted)
            counted.offloaded.follow(states.offload.num_copied)
            counted.not_offloaded.follow(states.offload.num_dropped)
        if cache is not None:
            counted.answered(cache)

    async def hand_over(self, most_bytes: int) -> int:
        """Have Redis hold what was used last here, see `WriteBehind.hand_over`; states that are on their way from a GPU
        to the host are not among it. Nothing without histories in Redis: nobody else could use it.
        """
        if self._cache is None or self._cache.remote is None or not self._histories.is_shared:
            return 0
        return await self._cache.remote.writes.hand_over(self._hottest(self._cache), most_bytes)

    def _hottest(self, cache: KVCache) -> Iterator[Offer]:
        for key in cache.host.hottest():
            history = self._histories.copy(key.user)
            if history is None or not key.is_ancestor(cache.fingerprint, history, key.start):
                continue
            if key.start == self.window_start(history) and (entry := cache.host.at(key)):
                yield Offer(history.until(key.stop), key.start, entry.state, tags=key.tags)

    async def close(self) -> None:
        """End what fetches, copies and writes, and let go of every state. After the model's last job on the device."""
        if self._like is not None and self._counts:
            await self._histories.counters.release(self._like)
        await self.fetcher.close()
        if self._cache is not None:
            await asyncio.to_thread(self._cache.close)
        if self.remote is not None and self._histories.redis is not None:
            await self._histories.redis.detach(self.remote)


def _model_info(checkpoint: Checkpoint, options: RankerOptions, served: Served) -> ModelInfo:
    model, ranker = checkpoint.model, checkpoint.model.config
    computed_by = [str(model.device), str(model.dtype).removeprefix("torch."), served.name]
    if options.kv_dtype != "auto" and model.encodes_prefix:
        computed_by.append(f"{options.kv_dtype} pages")
    return ModelInfo(
        name=options.name or ranker.name,
        version=checkpoint.fingerprint[:_VERSION_CHARS],
        architecture=ranker.architecture,
        tasks=tuple(task.name for task in ranker.tasks),
        actions=ranker.actions,
        context_features=tuple(
            ContextFeatureInfo(f.name, f.num_values, f.values, f.derive is not None) for f in ranker.context_features
        ),
        dense_features=tuple(feature.name for feature in ranker.dense_features),
        max_history=ranker.max_history,
        max_candidates=options.max_candidates,
        prefix_stable=model.prefix_stable,
        reads_last_events=not model.encodes_prefix,
        backend=" ".join(computed_by),
        task_infos=task_infos(ranker.tasks, ranker.blend),
        counts_items=checkpoint.items.num_events is not None,
        counters=COUNTERS if ranker.counters is not None else (),
        conditions=tuple(condition.name for condition in conditions(ranker)),
        item_ids="integer" if checkpoint.items.texts is None else "text",
    )
