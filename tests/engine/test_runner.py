"""The runner: sorting, blending, and what it reuses of a state; each answer against a cold forward."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.backends.select import any_reference, reference
from mfalcon.best_first import best_first
from mfalcon.engine.job import RankJob, prefill_job
from mfalcon.engine.runner import Runner
from mfalcon.engine.warmup import measure_microbatch
from mfalcon.errors import EngineFailure
from mfalcon.history.history import no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.fetch import Fetched
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import prefix_rankers, rankers
from mfalcon.types import NO_SCORE, CacheInfo, CacheSource, Events, RankRequest, no_events
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config, task_model

BOUND = 2e-6  # answers are float32, ratings up to 10: half a unit in the last place is 5e-7
ITEMS = small_checkpoint().items.item_id


@given(
    st.lists(st.one_of(st.integers(-3, 3), st.floats(allow_nan=False, width=32)), max_size=50),
    st.integers(0, 60),
)
def test_best_first_is_sorted(scores: list[float], top_k: int) -> None:
    values = np.array(scores, dtype=np.float32)
    expected = sorted(range(len(scores)), key=lambda i: (-float(values[i]), i))[:top_k]
    got = best_first(values, top_k)
    assert got.dtype == np.uint32
    assert got.tolist() == expected


def runner_of(checkpoint: Checkpoint, budget: int = 1 << 20, small_candidates: int = 0) -> tuple[Runner, KVCache]:
    served = reference(checkpoint.model)
    cache = KVCache("f", served.pool, budget, Tombstones())
    return Runner(served, checkpoint.items, cache, 5, "v", small_candidates=small_candidates), cache


def rank_job(events: Events, request: RankRequest) -> RankJob:
    history = no_history(request.user_id, b"life").extended(events)
    return RankJob(request, Fetched(history), None)


def assert_right(checkpoint: Checkpoint, runner: Runner, events: Events, request: RankRequest) -> CacheInfo:
    with torch.inference_mode():
        result = runner.rank(rank_job(events, request))
    expected = cold_scores(checkpoint, events, request).numpy()
    assert result.task_scores.dtype == result.scores.dtype == np.float32
    assert np.abs(result.task_scores - expected).max() <= BOUND
    config = checkpoint.model.config
    blended = sum(config.blend.get(task.name, 0) * expected[i] for i, task in enumerate(config.tasks))
    assert np.abs(result.scores - blended).max() <= BOUND
    assert result.tasks == ("like", "rating")
    assert result.history_len == len(events)
    assert result.top.tolist() == best_first(result.scores, request.top_k).tolist()
    return result.cache


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_what_is_reused_over_the_life_of_a_history(architecture: str) -> None:
    """Grows by one event at a time over the window's edge: appended, slid once per chunk, and always right."""
    checkpoint = small_checkpoint(architecture)
    runner, _ = runner_of(checkpoint)
    per_event = checkpoint.prefix_model.tokens_per_event
    events, request = random_events(45), rank_request("ann", [*ITEMS[:9], 7], top_k=4)
    assert assert_right(checkpoint, runner, no_events(), request) == CacheInfo(CacheSource.NONE, 0, 0)
    start = 0
    for length in range(1, 46):
        cache = assert_right(checkpoint, runner, events[:length], request)
        slid = length > 24 and (length - 25) % 8 == 0
        start += 8 if slid else 0
        expected = (
            CacheInfo(CacheSource.NONE, 0, (length - start) * per_event)
            if slid or length == 1
            else CacheInfo(CacheSource.HOST, (length - 1 - start) * per_event, per_event)
        )
        assert cache == expected, length
        again = assert_right(checkpoint, runner, events[:length], request)
        assert again == CacheInfo(CacheSource.HOST, (length - start) * per_event, 0)


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_recent_events_are_seen_and_forgotten(architecture: str) -> None:
    checkpoint = small_checkpoint(architecture)
    runner, cache = runner_of(checkpoint)
    per_event = checkpoint.prefix_model.tokens_per_event
    events = random_events(23)
    log, recent = events[:20], events[20:]
    plain, with_recent = rank_request("ann", ITEMS[:9].tolist()), rank_request("ann", ITEMS[:9].tolist(), recent=recent)
    assert_right(checkpoint, runner, log, plain)
    kept = cache.num_bytes
    assert assert_right(checkpoint, runner, log, with_recent) == CacheInfo(
        CacheSource.HOST, 20 * per_event, 3 * per_event
    )
    assert assert_right(checkpoint, runner, log, plain) == CacheInfo(CacheSource.HOST, 20 * per_event, 0)
    assert cache.num_bytes == kept
    # The same events acknowledged later are appended as any others.
    assert assert_right(checkpoint, runner, events, plain) == CacheInfo(CacheSource.HOST, 20 * per_event, 3 * per_event)


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_recent_events_that_move_the_window_keep_a_state_of_their_own(architecture: str) -> None:
    """Of the acknowledged events alone; the history's own state stays, until its window moves as well."""
    checkpoint = small_checkpoint(architecture)
    runner, cache = runner_of(checkpoint)
    per_event, events = checkpoint.prefix_model.tokens_per_event, random_events(30)

    def rank(num_log: int, num_recent: int = 0) -> tuple[int, int]:
        """Events reused and encoded."""
        recent = events[num_log : num_log + num_recent]
        request = rank_request("ann", ITEMS[:9].tolist(), recent=recent)
        info = assert_right(checkpoint, runner, events[:num_log], request)
        return info.reused_tokens // per_event, info.encoded_tokens // per_event

    assert rank(22) == (0, 22)
    assert rank(22, 4) == (0, 14 + 4)  # the window begins at 8
    assert rank(22, 4) == (14, 4)
    assert rank(22, 3) == (14, 3)
    assert rank(22) == (22, 0)
    assert rank(23) == (22, 1)
    assert rank(23, 4) == (14, 1 + 4)
    assert len(cache.host) == 2
    assert rank(25) == (15, 2)  # acknowledged: the history's own window begins at 8
    assert len(cache.host) == 1


def test_recent_events_in_place_of_the_history_keep_nothing() -> None:
    checkpoint = small_checkpoint()
    runner, cache = runner_of(checkpoint)
    request = rank_request("ann", ITEMS[:9].tolist(), recent=random_events(40))
    assert assert_right(checkpoint, runner, random_events(9)[:3], request) == CacheInfo(CacheSource.NONE, 0, 19)
    assert cache.num_bytes == 0


def test_a_request_is_small_by_the_window_that_it_sees() -> None:
    checkpoint = small_checkpoint(config=small_config(max_history=80, window_chunk=40))
    runner, _ = runner_of(checkpoint, small_candidates=9)
    events = random_events(82)
    plain = rank_job(events[:78], rank_request("ann", ITEMS[:9].tolist()))
    moved = rank_job(events[:78], rank_request("ann", ITEMS[:9].tolist(), recent=events[78:]))
    with torch.inference_mode():
        runner.rank(plain)
        assert runner.forecast(plain).batch and not runner.forecast(moved).batch  # [40:82] is new
        runner.rank(moved)
        assert runner.forecast(plain).batch and runner.forecast(moved).batch


def test_recent_events_alone() -> None:
    checkpoint = small_checkpoint()
    runner, cache = runner_of(checkpoint)
    request = rank_request("ann", ITEMS[:3].tolist(), recent=random_events(40))
    assert assert_right(checkpoint, runner, no_events(), request) == CacheInfo(CacheSource.NONE, 0, 24)
    assert cache.num_bytes == 0


def test_a_prefix_that_is_not_stable_is_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = small_checkpoint()
    monkeypatch.setattr(type(checkpoint.model), "prefix_stable", False)
    runner, cache = runner_of(checkpoint)
    request = rank_request("ann", ITEMS[:3].tolist())
    for length in (9, 9, 10):
        info = assert_right(checkpoint, runner, random_events(length), request)
        assert info == CacheInfo(CacheSource.NONE, 0, length)
    assert cache.num_bytes == 0


def test_no_budget_is_slow_and_right() -> None:
    checkpoint = small_checkpoint()
    runner, cache = runner_of(checkpoint, budget=0)
    for _ in range(2):
        info = assert_right(checkpoint, runner, random_events(9), rank_request("ann", ITEMS[:3].tolist()))
        assert info == CacheInfo(CacheSource.NONE, 0, 9)
    assert cache.num_bytes == 0


def test_prefill_then_rank_is_a_hit() -> None:
    checkpoint = small_checkpoint()
    runner, _ = runner_of(checkpoint)
    job = rank_job(random_events(9), rank_request("ann", ITEMS[:3].tolist()))
    with torch.inference_mode():
        assert runner.rank(prefill_job(job.fetched_history, None)).cache == CacheInfo(CacheSource.NONE, 0, 9)
        assert runner.rank(job).cache == CacheInfo(CacheSource.HOST, 9, 0)


def test_unknown_candidates_are_flagged() -> None:
    checkpoint = small_checkpoint()
    runner, _ = runner_of(checkpoint)
    with torch.inference_mode():
        result = runner.rank(rank_job(no_events(), rank_request("ann", [1, int(ITEMS[3]), -1, -1])))
    assert result.unknown.tolist() == [0, 2, 3]
    assert result.unknown.dtype == np.uint32
    assert result.scores[0] == result.scores[2] == result.scores[3]


def test_a_score_that_is_no_number_is_the_failure_of_its_candidate_alone() -> None:
    checkpoint = small_checkpoint()
    runner, _ = runner_of(checkpoint)
    bad, *good = ITEMS[:4].tolist()
    request = rank_request("ann", [bad, *good, bad], top_k=5)
    with torch.inference_mode():
        right = runner.rank(rank_job(no_events(), request))
        task_model(checkpoint).heads.get_parameter("item_bias.weight")[1] = float("nan")
        result = runner.rank(rank_job(no_events(), request))
    assert result.failed.tolist() == [0, 4]
    assert not len(right.failed)
    assert np.array_equal(result.scores[1:4], right.scores[1:4])
    assert np.array_equal(result.task_scores[:, 1:4], right.task_scores[:, 1:4])
    assert (result.scores[[0, 4]] == NO_SCORE).all()
    assert (result.task_scores[:, [0, 4]] == NO_SCORE).all()
    assert result.top.tolist()[3:] == [0, 4]


def test_a_model_that_gives_no_candidate_a_number_is_an_error_that_names_them() -> None:
    checkpoint = small_checkpoint()
    runner, _ = runner_of(checkpoint)
    task_model(checkpoint).heads.get_parameter("item_bias.weight")[1] = float("nan")
    bad = int(ITEMS[0])
    with (
        torch.inference_mode(),
        pytest.raises(EngineFailure, match=rf"gives 2 of 2 candidates .* no finite number: {bad}, {bad}$"),
    ):
        runner.rank(rank_job(no_events(), rank_request("ann", [bad, bad])))


@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_a_state_that_spoils_scores_is_deleted_and_made_again(what: float) -> None:
    """However it came to be: one request pays for it, and none gets an error."""
    checkpoint = small_checkpoint()
    runner, cache = runner_of(checkpoint)
    events, request = random_events(20), rank_request("ann", ITEMS[:9].tolist())
    assert_right(checkpoint, runner, events, request)
    found = cache.lookup(rank_job(events, request).fetched_history.history, 0)
    assert found is not None
    k, v = found.state.read(1)
    found.state.write(1, k, torch.full_like(v, what))
    assert assert_right(checkpoint, runner, events, request) == CacheInfo(CacheSource.NONE, 0, 20)
    assert assert_right(checkpoint, runner, events, request) == CacheInfo(CacheSource.HOST, 20, 0)


def test_what_is_encoded_to_no_number_is_not_kept() -> None:
    checkpoint = small_checkpoint()
    checkpoint.model.items.id.weight[5] = float("nan")
    runner, cache = runner_of(checkpoint)
    events = random_events(20)
    events["item_id"][7] = ITEMS[4]  # rows begin at 1
    with torch.inference_mode():
        with pytest.raises(EngineFailure, match="keys or values that are not finite numbers"):
            runner.rank(rank_job(events, rank_request("ann", ITEMS[:3].tolist())))
        assert cache.num_bytes == 0
        with pytest.raises(EngineFailure, match="keys or values that are not finite numbers"):
            runner.rank(prefill_job(rank_job(events, rank_request("ann", [1])).fetched_history, None))


def test_a_blend_beyond_float32_is_an_error() -> None:
    config = small_config().model_copy(update={"blend": {"rating": 1e39}})
    checkpoint = small_checkpoint(config=config)
    runner, _ = runner_of(checkpoint)
    with torch.inference_mode(), pytest.raises(EngineFailure, match="no finite number"):
        runner.rank(rank_job(no_events(), rank_request("ann", ITEMS[:3].tolist())))


def test_timings_add_up() -> None:
    checkpoint = small_checkpoint()
    runner, _ = runner_of(checkpoint)
    with torch.inference_mode():
        timings = runner.rank(rank_job(random_events(20), rank_request("ann", ITEMS.tolist()))).timings
    parts = (timings.queue_us, timings.state_us, timings.encode_us, timings.score_us)
    assert all(part >= 0 for part in parts)
    assert timings.encode_us > 0 and timings.score_us > 0
    assert sum(parts) <= timings.total_us + 4  # each rounded to a microsecond


@pytest.mark.parametrize("architecture", rankers())
def test_the_measured_microbatch_is_one_of_the_sizes(architecture: str) -> None:
    with torch.inference_mode():
        assert measure_microbatch(any_reference(small_checkpoint(architecture).model), (16, 32)) in (16, 32)
