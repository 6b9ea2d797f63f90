"""`mfalcon verify`: the laws hold on random checkpoints in every dtype, and each of them can fail."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import mfalcon.attention
import mfalcon.engine.device
import mfalcon.engine.redis_parts
import mfalcon.engine.step
import mfalcon.kvcache.cache
from kernels import reference
from kernels.bias import RelativeBias
from kernels.reach import Reach
from mfalcon import laws
from mfalcon.attention import AttentionForm
from mfalcon.backends import select
from mfalcon.backends.choice import REFERENCE, TRITON, choose, runnable
from mfalcon.backends.select import serve, serve_any
from mfalcon.counters.sets import Counted, CounterSets
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.device import Runners
from mfalcon.engine.engine import Engine
from mfalcon.engine.job import RankJob
from mfalcon.engine.probe import BOUNDS
from mfalcon.engine.scheduler import Scheduler
from mfalcon.errors import CheckpointError, ConfigError, EngineFailure
from mfalcon.history.history import History
from mfalcon.kvcache.cache import Found, KVCache
from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.kvcache.state import KVState
from mfalcon.kvcache.tier import Entry
from mfalcon.laws import LawResult
from mfalcon.masked_attention import BatchPrefixAttention
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_layers import ReachConfig
from mfalcon.models.din_network import DinNetwork
from mfalcon.models.din_split import DinSplit
from mfalcon.models.registry import architecture as registered
from mfalcon.models.registry import architectures, prefix_rankers
from mfalcon.types import CacheSource, RankResult
from tests.device import needs_interpreter
from tests.small import small_checkpoint, small_config, small_embedding, task_model, with_attention

DTYPES = tuple(BOUNDS)
FROM_ELSEWHERE = ("dlrm_v3_stable", "recsys_hstu")
"""Of parts that others here have, so that one type tells enough."""


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        (name, dtype)
        for name in architectures()
        for dtype in DTYPES
        if name not in FROM_ELSEWHERE or dtype == torch.float32
    ],
)
def test_all_laws_hold(architecture: str, dtype: torch.dtype) -> None:
    config = small_config(architecture, max_history=77, window_chunk=63)
    results = list(laws.check(small_checkpoint(architecture, dtype, config=config)))
    assert sorted({result.law for result in results}) == [1, 2, 3, 4, 5, 6, 7]
    encodes = registered(architecture).encodes_prefix
    assert {result.law for result in results if result.not_applicable} == (set() if encodes else {3, 5, 7})
    for result in results:
        exact = encodes and result.law == 7 and is_fused_float32(dtype) and architecture != "dlrm_v3_stable"
        assert result.bound == (0.0 if exact else BOUNDS[dtype])
        assert result.holds, result
    if dtype != torch.float64:  # a law that compares a thing with itself would measure 0 everywhere
        assert any(result.worst > 0 for result in results if result.law == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_laws_hold_with_counters(dtype: torch.dtype) -> None:
    config = small_config(max_history=40, window_chunk=7, with_counters=True)
    results = list(laws.check(small_checkpoint(dtype=dtype, config=config)))
    assert sorted({result.law for result in results}) == [1, 2, 3, 4, 5, 6, 7]
    for result in results:
        assert result.holds, result


@pytest.mark.parametrize("architecture", ["dfgr", "din"])
def test_all_laws_hold_with_a_graph(architecture: str) -> None:
    holds_all_laws(small_config(architecture, max_history=20, window_chunk=7, with_graph=True, with_counters=True))


@pytest.mark.parametrize("architecture", ["dfgr", "din"])
def test_all_laws_hold_in_an_open_vocabulary(architecture: str) -> None:
    config = small_config(architecture, max_history=20, window_chunk=7, embedding=small_embedding())
    holds_all_laws(config)


@pytest.mark.parametrize(
    ("architecture", "dtype", "position"),
    [
        ("hstu", torch.float32, {"rope": {}, "bias": {"num_positions": 9}}),
        ("dfgr", torch.float64, {"alibi": {"num_positions": 15}}),
    ],
)
def test_all_laws_hold_with_softmax(architecture: str, dtype: torch.dtype, position: dict[str, object]) -> None:
    config = with_attention(small_config(architecture, max_history=20, window_chunk=7), "softmax", **position)
    holds_all_laws(config, dtype)


def test_all_laws_hold_where_no_item_is_listed() -> None:
    embedding = small_embedding("robe-v0").model_copy(update={"features": ()})
    config = small_config(max_history=20, window_chunk=7, embedding=embedding)
    holds_all_laws(config.model_copy(update={"num_items": 1, "side_features": ()}))


@pytest.mark.parametrize("architecture", ["dfgr", pytest.param("hstu", marks=pytest.mark.thorough)])
def test_all_laws_hold_of_layers_that_see_a_part(architecture: str) -> None:
    reach = (ReachConfig(tokens=3, targets=11, first=2), ReachConfig(tokens=7))
    config = small_config(architecture, max_history=20, window_chunk=7).model_copy(update={"reach": reach})
    holds_all_laws(config)


def holds_all_laws(config: RankerConfig, dtype: torch.dtype = torch.float32) -> None:
    results = list(laws.check(small_checkpoint(config.architecture, dtype, config=config)))
    assert sorted({result.law for result in results}) == [1, 2, 3, 4, 5, 6, 7]
    for result in results:
        assert result.holds, result


def test_law_6_sees_items_that_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CounterSets, "read", lambda *_: Counted())
    config = small_config(with_counters=True)
    results = [result for result in laws.check(small_checkpoint(config=config)) if result.law == 6]
    assert results and not all(result.holds for result in results)


def test_law_6_is_broken_by_an_engine_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """However early it is known: what is appended by then is refused, and so are all requests."""

    def known_at_once(checkpoint: Checkpoint, config: EngineConfig) -> Engine:
        engine = compose(checkpoint, config)
        with pytest.raises(EngineFailure, match="no model"):
            engine.wait_ready(60)
        return engine

    monkeypatch.setattr("mfalcon.laws.compose", known_at_once)
    monkeypatch.setattr("mfalcon.engine.ranker.probe", refused)
    results = [result for result in laws.check(small_checkpoint()) if result.law == 6]
    assert results and all(result.worst == float("inf") for result in results)


def refused(*_: object, **__: object) -> None:
    raise CheckpointError("no model")


def is_fused_float32(dtype: torch.dtype) -> bool:
    return dtype == torch.float32 and choose("auto", torch.device("cpu"), dtype).kernel is not None


def test_the_laws_hold_in_any_unit_of_the_value() -> None:
    """A task that learns seconds watched has scores of thousands, whose last bit is larger than an absolute bound."""
    checkpoint = small_checkpoint(dtype=torch.float32)
    task_model(checkpoint).heads.rescale(1, 5_000.0, 0.0)
    for result in laws.check(checkpoint):
        assert result.holds, result


def test_a_score_that_is_no_number_breaks_a_law() -> None:
    assert not LawResult(1, "", float("nan"), 1.0).holds
    assert laws._worst(torch.tensor([float("nan")]), torch.tensor([float("nan")])) == float("inf")


def measured(law: int, architecture: str = "dfgr") -> list[LawResult]:
    return [result for result in laws.check(small_checkpoint(architecture)) if result.law == law]


def assert_breaks(law: int, architecture: str = "dfgr") -> None:
    results = measured(law, architecture)
    assert results and not all(result.holds for result in results), results
    assert max(result.worst for result in results) > 1e-6  # far beyond rounding


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_law_1_sees_targets_that_miss_themselves(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    def without_self(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None, **form: float) -> Tensor:
        return _target_attention(q, k, torch.zeros_like(v), *rest, **form)

    monkeypatch.setattr(mfalcon.attention, "target_attention", without_self)
    assert_breaks(1, architecture)


def test_law_1_sees_a_bias_of_the_wrong_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = RelativeBias.vector

    def late(self: RelativeBias, q_pos: int, k_pos: Tensor, q_time: int, k_time: Tensor) -> Tensor:
        return right(self, q_pos, k_pos, q_time + 3_600_000, k_time)

    monkeypatch.setattr(RelativeBias, "vector", late)
    assert_breaks(1)


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_law_2_sees_targets_that_see_each_other(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    def together(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None, **form: float) -> Tensor:
        out = _target_attention(q, k, v, *rest, **form)
        return out + v.mean(0, keepdim=True)

    monkeypatch.setattr(mfalcon.attention, "target_attention", together)
    assert_breaks(2, architecture)


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_law_3_sees_an_append_at_the_wrong_position(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    def from_zero(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        times: Tensor,
        bias: RelativeBias | None,
        *,
        logit_scale: float,
        norm: float,
        reach: Reach | None,
        softmax: bool,
    ) -> Tensor:
        if bias is not None and len(q) < k.shape[1]:
            bias = RelativeBias(bias.position.roll(1, dims=1), bias.time, bias.thresholds)
        return reference.prefix_attention(
            *(q, k, v, times, bias), logit_scale=logit_scale, norm=norm, reach=reach, softmax=softmax
        )

    monkeypatch.setattr(mfalcon.attention, "prefix_attention", from_zero)
    assert_breaks(3, architecture)


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_law_4_sees_a_norm_by_the_longest_of_the_batch(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    right = BatchPrefixAttention.__call__

    def by_length(
        self: BatchPrefixAttention, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm
    ) -> Tensor:
        return right(self, layer, q, k, v, AttentionForm(form.logit_scale, float(q.shape[-3]), form.bias))

    monkeypatch.setattr(BatchPrefixAttention, "__call__", by_length)
    assert_breaks(4, architecture)


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_law_5_sees_a_store_that_trusts_length(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    """As the peers do: keyed by user and length, without a hash of the history."""

    def by_length(self: KVCache, history: History, start: int, fetched: Entry | None, tags: bytes) -> Found | None:
        entry = self.host.get(history.user, start)
        if entry is None or entry.key.stop > len(history) or entry.key.start != start:
            return None
        return Found(entry.state, entry.key.stop, CacheSource.HOST)

    monkeypatch.setattr(KVCache, "lookup", by_length)
    assert_breaks(5, architecture)


def test_law_5_sees_a_window_that_slid(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup, put = KVCache.lookup, KVCache.put

    def from_anywhere(self: KVCache, history: History, start: int, fetched: Entry | None, tags: bytes) -> Found | None:
        return lookup(self, history, 0, fetched, tags)

    def for_anywhere(
        self: KVCache, history: History, start: int, state: KVState, own_start: int, tags: bytes, made_at: float
    ) -> None:
        put(self, history, 0, state)

    monkeypatch.setattr(KVCache, "lookup", from_anywhere)
    monkeypatch.setattr(KVCache, "put", for_anywhere)
    assert_breaks(5)


def in_steps(monkeypatch: pytest.MonkeyPatch, defect: Callable[[int, Runners, RankJob], bool]) -> None:
    """Put a defect into the engine's step; it gets the number of the step and says whether to go on as usual."""
    right, count = mfalcon.engine.step.step, iter(range(10**6))

    def one(
        runners: Runners, jobs: Sequence[RankJob], seconds: float, make_room: Callable[[int], bool]
    ) -> list[RankJob]:
        return right(runners, [job for job in jobs if defect(next(count), runners, job)], seconds, make_room)

    monkeypatch.setattr(mfalcon.engine.device, "step", one)


def test_law_6_sees_a_dropped_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "_ANSWER_S", 2.0)
    monkeypatch.setattr(Scheduler, "did", lambda *_: [])  # what is not answered is not done again
    in_steps(monkeypatch, lambda number, runners, job: number != 5)
    assert_breaks(6)


def test_law_6_sees_a_request_that_is_refused_without_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_third(number: int, runners: Runners, job: RankJob) -> bool:
        if number == 6:
            job.future.set_exception(RuntimeError("no reason"))
            return False
        return True

    in_steps(monkeypatch, fail_third)
    assert_breaks(6)


def test_law_6_sees_an_answer_of_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    last: list[RankResult] = []

    def swap(number: int, runners: Runners, job: RankJob) -> bool:
        if job.deadline is None:
            last.append(runners[job.model].rank(job))
            job.future.set_result(last[-2] if len(last) > 1 else last[-1])
            return False
        return True

    in_steps(monkeypatch, swap)
    assert_breaks(6)


def test_law_6_sees_a_late_request_that_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(number: int, runners: Runners, job: RankJob) -> bool:
        if job.deadline is not None:
            job.future.set_result(runners[job.model].rank(RankJob(job.request, job.fetched_history, None)))
            return False
        return True

    in_steps(monkeypatch, serve)
    assert_breaks(6)


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_law_7_sees_a_payload_that_rounds(monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    monkeypatch.setattr(mfalcon.engine.redis_parts, "exact_dtype", lambda _: PayloadDtype.BFLOAT16)
    assert_breaks(7, architecture)


def test_law_7_sees_a_tier_that_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "lookup", lambda *_: None)
    assert_breaks(7)


def test_law_7_sees_an_append_that_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    right = KVState.write_times

    def shifted(self: KVState, times: Tensor) -> None:
        right(self, times + 3_600_000 * (self.num_tokens > len(times)))

    monkeypatch.setattr(KVState, "write_times", shifted)
    assert_breaks(7)


def din_case() -> tuple[laws.Subject, laws.Case]:
    """An engine would refuse what is broken here: the laws are measured without one."""
    checkpoint = small_checkpoint("din")
    return laws.Subject(checkpoint, serve_any(checkpoint.model), "auto"), laws.random_case(checkpoint, 20, seed=1)


def test_law_1_sees_a_user_side_of_other_events(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DinSplit.user_side
    monkeypatch.setattr(DinSplit, "user_side", lambda self, user, events: right(self, user, 1.01 * events))
    with torch.inference_mode():
        assert laws.per_candidate_error(*din_case()) > 1e-6


def test_law_2_sees_candidates_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DinSplit.raw
    monkeypatch.setattr(DinSplit, "raw", lambda self, side, items, size: right(self, side, items + items.mean(0), size))
    with torch.inference_mode():
        assert laws.candidate_set_error(*din_case()) > 1e-6


def test_law_4_sees_padding_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DinNetwork.plain

    def all_seen(self: DinNetwork, user: Tensor, events: Tensor, seen: Tensor, items: Tensor) -> Tensor:
        return right(self, user, events, torch.ones_like(seen), items)

    monkeypatch.setattr(DinNetwork, "plain", all_seen)
    assert_breaks(4, "din")


def _target_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None, **form: float) -> Tensor:
    prefix_k, prefix_v, prefix_bias, own_bias = rest
    assert prefix_k is not None and prefix_v is not None
    return reference.target_attention(
        q,
        k,
        v,
        prefix_k,
        prefix_v,
        prefix_bias,
        own_bias,
        logit_scale=form["logit_scale"],
        norm=form["norm"],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", prefix_rankers())
def test_every_backend_holds_the_laws(architecture: str, dtype: torch.dtype) -> None:
    """Odd sizes, d_qk != d_v, rab; the slow portable policies too, whose tiles have the form of AVX-512's."""
    config = small_config(architecture, max_history=77, window_chunk=63)
    found = [choice.name for choice in runnable(torch.device("cpu"), dtype) if choice.name != REFERENCE]
    for backend in found:
        for result in laws.check(small_checkpoint(architecture, dtype, config=config), backend=backend):
            assert result.holds, (backend, result)


@needs_interpreter
@pytest.mark.parametrize("architecture", prefix_rankers())
def test_triton_holds_laws_1_3_and_7(architecture: str) -> None:
    """In float64, which only the interpreter has. Laws 2 and 4 are held by tests/kernels, 5 and 6 by tests/engine."""
    checkpoint = small_checkpoint(architecture)
    subject = laws.Subject(checkpoint, serve(checkpoint.model, TRITON), "auto")
    case = laws.random_case(checkpoint, 20, seed=1)
    with torch.inference_mode():
        assert laws.masked_error(subject, case) <= 1e-12
        assert laws.append_error(subject, case) <= 1e-12
        assert laws.tier_error(subject, laws.random_case(checkpoint, 7, seed=1)) <= 1e-12


@needs_interpreter
def test_triton_holds_laws_1_and_3_with_softmax() -> None:
    config = with_attention(small_config(num_layers=2), "softmax", rope={}, bias={"num_positions": 9})
    checkpoint = small_checkpoint(config=config)
    subject = laws.Subject(checkpoint, serve(checkpoint.model, TRITON), "auto")
    case = laws.random_case(checkpoint, 7, seed=1)
    with torch.inference_mode():
        assert laws.masked_error(subject, case) <= 1e-12
        assert laws.append_error(subject, case) <= 1e-12
    with pytest.raises(ConfigError, match="kv_dtype: got fp8-products, must be auto, int8 or fp8 with softmax"):
        serve(checkpoint.model, TRITON, kv_dtype="fp8-products")


@needs_interpreter
def test_law_7_leaves_room_for_graphs_and_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device they come off the budget of its pages, and may be many times those of a small model."""
    for module in (select, laws):
        monkeypatch.setattr(module, "workspace_of", lambda _: 1 << 30)
    checkpoint = small_checkpoint()
    subject = laws.Subject(checkpoint, serve(checkpoint.model, TRITON), "auto")
    with torch.inference_mode():
        assert laws.tier_error(subject, laws.random_case(checkpoint, 7, seed=1)) <= 1e-12


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_int8_pages_hold_the_laws_within_their_bound(architecture: str) -> None:
    if choose("auto", torch.device("cpu"), torch.float32).kernel is None:
        pytest.skip("no compiled kernel")
    config = small_config(architecture, max_history=77, window_chunk=63)
    results = list(laws.check(small_checkpoint(architecture, torch.float32, config=config), kv_dtype="int8"))
    assert all(result.holds for result in results), results
    assert any(result.worst > 1e-5 for result in results)  # or the pages were not int8
