"""The laws of M-FALCON as measurements: what `mfalcon verify` runs on a user's own checkpoint, device and dtype.

Each law compares two ways to the same scores and reports the worst difference against a bound per dtype: absolute for
tasks whose scores stay within 1, relative to the largest score beyond (a task may learn seconds or dollars).
Laws 1 to 4 hold the algorithm, law 5 the state store, law 6 the engine, law 7 the tiers (ARCHITECTURE.md, "Laws").
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from mfalcon.algorithm import append, prefill, score, user_state
from mfalcon.backends.choice import ON_DEVICE
from mfalcon.backends.fused import FusedBackend
from mfalcon.backends.select import PoolBudget, Served, ServedModel, serve, serve_any, workspace_of
from mfalcon.counters.increments import counted, numbers
from mfalcon.counters.sets import Counted
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.job import RankJob
from mfalcon.engine.probe import BOUNDS, CODES_BOUNDS
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import layout_of
from mfalcon.engine.runner import Runner
from mfalcon.errors import DeadlineExceeded, ShuttingDown
from mfalcon.features.counters import LikeRule
from mfalcon.features.provider import Asked, FeatureProvider
from mfalcon.history.history import History, no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.chunk import ChunkHeader, pack, unpack
from mfalcon.kvcache.codec import decode, encode
from mfalcon.kvcache.fetch import Fetched
from mfalcon.kvcache.state import KVPool
from mfalcon.kvcache.tier import Entry
from mfalcon.masked_attention import FullAttention
from mfalcon.models.base import EventTokens, PrefixRanker, Ranker, Targets, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import EVENT_DTYPE, Append, CacheSource, DenseFeatures, Events, Ids, RankRequest, no_events

_EXACT = 0.0
"""Bound of law 7 on the fused kernels in float32: K and V of a prefix do not depend on how it was cut, and no tier
rounds them. Elsewhere an append may order its sums otherwise than a prefill.
"""

_OF_STATES = frozenset({3, 5, 7})
"""Laws of states that outlive their request."""
_LENGTHS = (0, 1, 63, 200)
_NUM_CANDIDATES = 37
_GIVEN_SHARE = 0.75
"""Of the dense features that a request gives."""
_MINUTE_MS = 60_000
_MOST_COUNTED = 10_000
_ANSWER_S = 60.0
_HOST_BYTES = 1 << 30
_DEVICE_BYTES = 2 << 30
"""Of the engine's pool on a device, which need not be most of what is free there."""


@dataclass(frozen=True, slots=True)
class LawResult:
    """One law, measured; or why it does not apply to the model, where it says nothing."""

    law: int
    statement: str
    worst: float
    bound: float
    not_applicable: str = ""

    @property
    def holds(self) -> bool:
        """True when the worst error is within the bound (never for NaN), or the law does not apply."""
        return bool(self.not_applicable) or self.worst <= self.bound


@dataclass(frozen=True, slots=True)
class Case:
    """A random request: a history, candidates with duplicates, context codes, the request time, some of the dense
    features, and what was counted of the candidates' items, [num_candidates, 3].
    """

    history: Events
    candidates: Ids
    context: Tensor
    time_ms: int
    dense: DenseFeatures
    item_counts: Ids


@dataclass(frozen=True, slots=True)
class Subject:
    """What is held against the laws: a checkpoint on a backend. kv_dtype: of its pages."""

    checkpoint: Checkpoint
    served: Served
    kv_dtype: str

    @property
    def prefix(self) -> ServedModel:
        """The model as one that encodes a history."""
        assert isinstance(self.served, ServedModel)
        return self.served


def check(checkpoint: Checkpoint, seed: int = 0, backend: str = "auto", kv_dtype: str = "auto") -> Iterator[LawResult]:
    """Measure every law on a loaded checkpoint, in its dtype, on its device and on a backend. kv_dtype: of its pages
    (models.served.KV_DTYPES). A law that has no meaning for the model is given with the reason.

    Raises ConfigError if the backend cannot run here.
    """
    model = checkpoint.model
    subject = Subject(checkpoint, serve_any(model, backend, kv_dtype=kv_dtype), kv_dtype)
    bound = BOUNDS[model.dtype]
    if model.encodes_prefix:
        bound = max(bound, CODES_BOUNDS.get(kv_dtype, 0.0))
    cases = [random_case(checkpoint, length, seed + length) for length in _lengths(model)]
    shared = "cached scores" if model.encodes_prefix else "scores that share the user's side"
    laws: tuple[tuple[int, str, Callable[[Subject, Case], float]], ...] = (
        (1, f"{shared} = one forward per candidate", per_candidate_error),
        (1, f"{shared} = one {'masked ' * model.encodes_prefix}forward", masked_error),
        (2, "microbatch, order, duplicates and removals move no score", candidate_set_error),
        (3, "append(prefill(h1), h2) = prefill(h1 + h2)", append_error),
        (4, "batch-mates and padding move no score", batch_error),
        (5, "an edited, shrunk, slid or deleted history never meets a stale state", freshness_error),
        (7, "the tier moves no score, before and after an append", tier_error),
    )
    with torch.inference_mode():
        for law, statement, error in laws:
            if law in _OF_STATES and not model.prefix_stable:
                yield LawResult(law, statement, 0.0, bound, model.why_no_states)
                continue
            of_law = _EXACT if law == 7 and _is_exact(subject) else bound
            yield LawResult(law, statement, max(error(subject, case) for case in cases), of_law)
    yield LawResult(
        6, "every request is answered once, rightly or with an explicit error", engine_error(subject, cases), bound
    )


def random_case(checkpoint: Checkpoint, length: int, seed: int) -> Case:
    """A seeded request on the checkpoint's own items; half of the events share their time with the one before."""
    rng = np.random.default_rng(seed)
    config = checkpoint.model.config
    known = _known(checkpoint)
    history = np.zeros(length, dtype=EVENT_DTYPE)
    history["item_id"] = rng.choice(known, length)
    history["actions"] = 1 << rng.integers(0, len(config.actions), length)
    history["value"] = rng.integers(1, 6, length)
    history["time_ms"] = 10**12 + np.cumsum(rng.integers(0, 2, length) * rng.integers(1, 10**8, length))
    if checkpoint.model.ranks_items:
        unknown = np.setdiff1d(np.arange(len(known) + 1), known)[0]
        candidates = np.append(rng.choice(known, _NUM_CANDIDATES - 1), unknown)
    else:
        candidates = rng.integers(0, checkpoint.model.num_target_rows, _NUM_CANDIDATES)
    codes = [int(rng.integers(-1, feature.num_values)) for feature in config.context_features]
    now = int(history["time_ms"][-1]) if length else 10**12
    context = torch.tensor(codes, dtype=torch.int64, device=_device(checkpoint.model))
    names = tuple(feature.name for feature in reversed(config.dense_features) if rng.random() < _GIVEN_SHARE)
    dense = DenseFeatures(names, rng.normal(size=len(candidates) * len(names)).astype(np.float32))
    item_counts = np.zeros((len(candidates), 3), dtype=np.int64)  # one item has one count, however often it is asked
    for item in np.unique(candidates):
        item_counts[candidates == item] = np.sort(rng.integers(0, _MOST_COUNTED, 3))[::-1]
    return Case(history, candidates, context, now + _MINUTE_MS, dense, item_counts)


def _known(checkpoint: Checkpoint) -> Ids:
    """Ids of the checkpoint's items; any where it names none."""
    return checkpoint.items.item_id if len(checkpoint.items.item_id) else np.arange(1, 10)


def per_candidate_error(subject: Subject, case: Case) -> float:
    """Law 1: against one causal forward over [history, candidate] for each candidate."""
    served, events, targets = _inputs(subject, case)
    cached = _score(served, events, targets, case)
    forward = [
        masked_forward(served.model, events, targets.part(slice(i, i + 1)), case.time_ms)
        for i in range(len(targets.rows))
    ]
    return _worst(cached, torch.cat(forward))


def masked_error(subject: Subject, case: Case) -> float:
    """Law 1: against one forward over [history, candidates] under a mask."""
    served, events, targets = _inputs(subject, case)
    return _worst(_score(served, events, targets, case), masked_forward(served.model, events, targets, case.time_ms))


def candidate_set_error(subject: Subject, case: Case) -> float:
    """Law 2: other microbatches, another order, duplicated and removed candidates."""
    served, events, targets = _inputs(subject, case)
    state = user_state(served, events, case.context, case.time_ms)
    generator = torch.Generator().manual_seed(len(case.history))
    m = len(targets.rows)
    base = score(served, state, targets, case.time_ms, m)
    shuffled = torch.randperm(m, generator=generator)
    chosen = (shuffled, torch.randint(0, m, (2 * m,), generator=generator), shuffled[: m // 3], shuffled[:1])
    worst = max(_worst(base, score(served, state, targets, case.time_ms, size)) for size in (1, 7, 64))
    for index in chosen:
        subset = targets.part(index.to(targets.rows.device))
        worst = max(worst, _worst(base[index], score(served, state, subset, case.time_ms, 16)))
    return worst


def append_error(subject: Subject, case: Case) -> float:
    """Law 3: the same history in one piece, in two, and event by event at the end."""
    (_, events, targets), served = _inputs(subject, case), subject.prefix
    whole = _score(served, events, targets, case)
    n, worst = len(case.history), 0.0
    for cuts in ((n // 2,), (n // 3, n // 3, n // 2), tuple(range(max(0, n - 3), n))):
        bounds = (*cuts, n)
        state = prefill(served, _part(events, 0, bounds[0]))
        for start, stop in pairwise(bounds):
            state = append(served, state, _part(events, start, stop))
        worst = max(worst, _worst(whole, score(served, state, targets, case.time_ms, 64)))
    return worst


def batch_error(subject: Subject, case: Case) -> float:
    """Law 4: the request alone, and in one padded batch with a longer and a shorter one."""
    served, events, targets = _inputs(subject, case)
    model, checkpoint = served.model, subject.checkpoint
    alone = _score(served, events, targets, case)
    mates = [random_case(checkpoint, length, 99 + length) for length in (len(case.history) + 13, 5)]
    rows = [events, *(event_tokens(mate.history, checkpoint.items, _device(model)) for mate in mates)]
    lengths = torch.tensor([len(row.rows) for row in rows])
    padded = EventTokens(*(_pad([getattr(row, name) for row in rows]) for name in EventTokens.__slots__))
    valid = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).to(_device(model))
    batch = len(rows)
    dense = None if targets.dense is None else targets.dense.expand(batch, -1, -1)
    many = Targets(targets.rows.expand(batch, -1), targets.context.expand(batch, 1, -1), dense)
    visible = lengths.to(_device(model)).unsqueeze(1).expand(-1, len(targets.rows))
    raw = model.outputs(padded, valid, many, visible, torch.full_like(visible, case.time_ms))
    return _worst(alone, model.scores(raw)[0])


def freshness_error(subject: Subject, case: Case) -> float:
    """Law 5: one warm runner meets histories that replaced the one it encoded; a cold runner gives the truth."""
    checkpoint, n, worst = subject.checkpoint, len(case.history), 0.0
    edited = case.history.copy()
    if n:
        edited["item_id"][n // 2] = _known(checkpoint)[0 if n % 2 else -1]
        edited["actions"][n // 2] ^= 1
    longer = random_case(checkpoint, checkpoint.model.config.max_history + 3, 7).history
    warm = _runner(subject)
    for history in (
        case.history,
        edited,
        case.history[: n // 2],
        case.history,
        longer[:-3],
        longer,
        no_events(),
        edited,
    ):
        job = _job(checkpoint, case, history)
        worst = max(worst, _worst(_task_scores(warm, job), _task_scores(_runner(subject), job)))
    return worst


def tier_error(subject: Subject, case: Case) -> float:
    """Law 7: a request recomputed, from the host's tier, and in another replica from chunks of Redis; before and after
    events are appended. Infinity if a tier does not give what it should hold.
    """
    checkpoint, n = subject.checkpoint, len(case.history)
    older, whole = (_job(checkpoint, case, case.history[:length]) for length in (n - n // 3, n))
    if not n:
        return 0.0  # nothing to hold
    before, after = (_task_scores(_runner(subject), job) for job in (older, whole))
    with _replica(subject) as here:
        _task_scores(here.runner, older)
        here.leave_to_host()
        entry = _through_redis(here, older.fetched_history.history)
        worst = _found_error(here, older, CacheSource.HOST, before)
        worst = max(worst, _worst(_task_scores(here.runner, whole), after))
    for job, truth in ((older, before), (whole, after)):  # the log may have grown since the chunks were written
        with _replica(subject) as there:
            fetched = Fetched(job.fetched_history.history, fetched=entry(there))
            found = replace(job, fetched_history=fetched)
            worst = max(worst, _found_error(there, found, CacheSource.REDIS, truth))
            worst = max(worst, _worst(_task_scores(there.runner, whole), after))
    return worst


def engine_error(subject: Subject, cases: list[Case]) -> float:
    """Law 6: concurrent requests, some already late; infinity if one is answered with what it should not be."""
    checkpoint = subject.checkpoint
    cases = [replace(case, item_counts=_count_of(checkpoint, cases, case.candidates)) for case in cases]
    truth = [_task_scores(_runner(subject), _job(checkpoint, case, case.history)) for case in cases]
    return asyncio.run(_ask(subject, cases, truth))


async def _ask(subject: Subject, cases: list[Case], truth: list[Tensor]) -> float:
    checkpoint, backend = subject.checkpoint, subject.served.name
    threads, device_bytes = torch.get_num_threads(), _DEVICE_BYTES
    if isinstance(subject.served, ServedModel):
        device_bytes += workspace_of(subject.served.stack)
    options = RankerOptions(microbatch=64, backend=backend, kv_dtype=subject.kv_dtype, device_budget_bytes=device_bytes)
    engine = compose(checkpoint, EngineConfig(threads, ranker=options))

    async def one(index: int, late: bool) -> float:
        request = _request(checkpoint, cases[index], f"user-{index}")
        answer = engine.rank(request, time.monotonic() - 1 if late else None)
        try:
            result = await asyncio.wait_for(answer, _ANSWER_S)
        except DeadlineExceeded:
            return 0.0 if late else np.inf
        except Exception:  # noqa: BLE001 (a refusal without cause, or no answer at all, breaks the law)
            return np.inf
        return np.inf if late else _worst(torch.from_numpy(result.task_scores.T), truth[index])

    try:
        for index, case in enumerate(cases):
            if len(case.history):
                await engine.append_events(f"user-{index}", Append(case.history, 0))
        requests = [one(index, late) for _ in range(4) for index in range(len(cases)) for late in (False, True)]
        return max(await asyncio.gather(*requests))
    except ShuttingDown:  # the probe at its start refused the model
        return np.inf
    finally:
        await engine.close()


def _count_of(checkpoint: Checkpoint, cases: list[Case], candidates: Ids) -> Ids:
    """What an engine has counted of items that is given the histories of all cases."""
    config = checkpoint.model.config
    if config.counters is None:
        return np.zeros((len(candidates), 3), dtype=np.int64)
    whole = counted(np.concatenate([case.history for case in cases]), LikeRule.of(config))
    at = np.minimum(np.searchsorted(whole["item_id"], candidates), len(whole) - 1)
    is_known = whole["item_id"][at] == candidates
    return np.where(is_known[:, None], numbers(whole[at]), 0)


def masked_forward(model: Ranker, events: EventTokens, targets: Targets, time_ms: int) -> Tensor:
    """One dense forward over [history, targets] under the mask of law 1: the definition that M-FALCON must equal. Of a
    model without a prefix it is the forward of its papers, every target with a copy of its user.

    Returns scores [num_targets, num_tasks].
    """
    if not isinstance(model, PrefixRanker):
        batch = EventTokens(*(getattr(events, name).unsqueeze(0) for name in EventTokens.__slots__))
        dense = None if targets.dense is None else targets.dense.unsqueeze(0)
        one = Targets(targets.rows.unsqueeze(0), targets.context.expand(1, 1, -1), dense)
        visible = torch.full_like(one.rows, len(events.rows))
        times = torch.full_like(visible, time_ms)
        return model.scores(model.outputs(batch, torch.ones_like(batch.rows, dtype=torch.bool), one, visible, times)[0])
    prefix = model.prefix_tokens(events)
    asked, n = model.target_tokens(targets), len(prefix)
    if model.reads_positions:
        prefix = model.placed(prefix, torch.arange(n, device=prefix.device))
        asked = model.placed_targets(asked, torch.full((len(asked),), n, device=asked.device))
    x = torch.cat([prefix, asked])
    size = len(x)
    mask = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    mask[n:, n:] = torch.eye(size - n, dtype=torch.bool, device=x.device)
    positions = torch.arange(size, device=x.device).clamp(max=n)
    times = torch.cat([model.token_times(events), torch.full((size - n,), time_ms, device=x.device)])
    is_target = torch.arange(size, device=x.device) >= n
    hidden = model.stack(x, FullAttention(mask, positions, times, times, is_target))
    return model.scores(model.predict(hidden[n:], targets))


def _lengths(model: Ranker) -> list[int]:
    longest = model.config.max_history
    return sorted({min(length, longest) for length in _LENGTHS})


def _device(model: Ranker) -> torch.device:
    return model.device


def _inputs(subject: Subject, case: Case) -> tuple[Served, EventTokens, Targets]:
    items, device = subject.checkpoint.items, _device(subject.served.model)
    events = event_tokens(case.history, items, device)
    keys = torch.from_numpy(subject.served.model.target_rows(items, case.candidates)).to(device)
    request, counts = _request(subject.checkpoint, case, "user"), _counted(subject.checkpoint, case).numbers
    model = subject.served.model
    provider, graph = FeatureProvider(model.config, items), None if model.graph is None else model.graph.rows()
    features = provider.features(Asked(request, items.rows(case.candidates), case.history, counts, graph))
    dense = None if features is None else torch.from_numpy(features).to(device)
    return subject.served, events, Targets(keys, case.context, dense)


def _score(served: Served, events: EventTokens, targets: Targets, case: Case) -> Tensor:
    state = user_state(served, events, case.context, case.time_ms)
    return score(served, state, targets, case.time_ms, 32)


def _part(events: EventTokens, start: int, stop: int) -> EventTokens:
    return EventTokens(*(getattr(events, name)[start:stop] for name in EventTokens.__slots__))


def _pad(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _runner(subject: Subject) -> Runner:
    cache = None
    if isinstance(subject.served, ServedModel):
        cache = KVCache("laws", subject.served.pool, _HOST_BYTES, Tombstones())
    return Runner(subject.served, subject.checkpoint.items, cache, 64, "laws")


@dataclass(frozen=True, slots=True)
class _Replica:
    """A server's pools, cache and runner."""

    served: ServedModel
    cache: KVCache
    runner: Runner

    def leave_to_host(self) -> None:
        """Have the host's tier alone hold what was kept."""
        self.cache.idle()
        if self.cache.device is not None:
            self.cache.device.delete(None)


@contextmanager
def _replica(subject: Subject) -> Iterator[_Replica]:
    served, checkpoint = subject.prefix, subject.checkpoint
    if served.stack.name in ON_DEVICE:  # with a pool in host memory beside the device's
        size = served.pool.num_bytes
        longest = served.model.config.max_history * served.model.tokens_per_event
        budget = PoolBudget(size, 1, longest, size + workspace_of(served.stack))
        served = serve(checkpoint.model, served.stack.name, budget, subject.kv_dtype)
    else:
        served = replace(served, pool=KVPool(served.pool.layout))
    cache = KVCache("laws", served.pool, _HOST_BYTES, Tombstones(), host_pool=served.host)
    try:
        yield _Replica(served, cache, Runner(served, checkpoint.items, cache, 64, "laws"))
    finally:
        cache.close()


def _through_redis(replica: _Replica, history: History) -> Callable[[_Replica], Entry]:
    """The host's state of a history as chunks, and what makes a state of them in another replica."""
    held = replica.cache.host.get(history.user, 0)
    assert held is not None
    layout = layout_of(replica.served.model, "laws")
    size, per_event = layout.events_per_chunk, layout.tokens_per_event
    values = []
    for first in range(0, len(history), size):
        stop = min(first + size, len(history))
        payload = encode(held.state, first * per_event, stop * per_event, layout.dtype)
        header = ChunkHeader(layout, history.user, history.link(stop), 0, first, stop)
        values.append(pack(header, payload, None))

    def read(other: _Replica) -> Entry:
        chunks = [unpack(value, layout, history.user, None) for value in values]
        payloads = [(payload, (header.stop - header.first) * per_event) for header, payload in chunks]
        state = decode(payloads, other.served.host or other.served.pool, layout.dtype)
        return Entry(held.key, state)

    return read


def _found_error(replica: _Replica, job: RankJob, source: CacheSource, truth: Tensor) -> float:
    """Infinity if the state does not come from the source."""
    with torch.inference_mode():
        result = replica.runner.rank(job)
    return _worst(torch.from_numpy(result.task_scores.T), truth) if result.cache.source is source else np.inf


def _is_exact(subject: Subject) -> bool:
    served = subject.served
    if not isinstance(served, ServedModel):
        return False
    is_float32 = served.pool.layout.shape.dtype == torch.float32 and not served.model.multiplies_tokens
    return is_float32 and isinstance(served.stack, FusedBackend) and subject.kv_dtype == "auto"


def _request(checkpoint: Checkpoint, case: Case, user_id: str) -> RankRequest:
    features = checkpoint.model.config.context_features
    codes = dict(zip([feature.name for feature in features], case.context.tolist(), strict=True))
    given = {name: code for name, code in codes.items() if code >= 0}
    return RankRequest(user_id, case.candidates, 0, case.time_ms, no_events(), given, dense=case.dense)


def _job(checkpoint: Checkpoint, case: Case, events: Events) -> RankJob:
    history = no_history("user", b"laws").extended(events)
    return RankJob(_request(checkpoint, case, "user"), Fetched(history), None, counted=_counted(checkpoint, case))


def _counted(checkpoint: Checkpoint, case: Case) -> Counted:
    config = checkpoint.model.config
    return Counted() if config.counters is None else Counted({LikeRule.of(config): case.item_counts})


def _task_scores(runner: Runner, job: RankJob) -> Tensor:
    with torch.inference_mode():
        return torch.from_numpy(runner.rank(job).task_scores.T)


def _worst(a: Tensor, b: Tensor) -> float:
    """Largest difference of scores [m, num_tasks], in units of the task's largest score where that exceeds 1.

    Infinity if either side is not finite.
    """
    unit = b.double().abs().amax(0).clamp(min=1)
    gap = (a.double() - b.double()).abs() / unit
    return float(gap.max()) if torch.isfinite(gap).all() else float("inf")
