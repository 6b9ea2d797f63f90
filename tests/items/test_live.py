"""Item rows that change while a model serves: every answer is that of one table, which it names."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mfalcon import laws
from mfalcon.algorithm import append, score, user_state
from mfalcon.backends.select import PoolBudget, ServedModel, any_reference, serve_any
from mfalcon.counters.sets import Counted
from mfalcon.engine.job import RankJob
from mfalcon.engine.runner import Runner
from mfalcon.errors import CheckpointError, InvalidInput, MFalconError
from mfalcon.features.counters import LikeRule
from mfalcon.history.history import no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.items.delta import Delta
from mfalcon.items.live import LiveItems, LiveOptions
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.fetch import Fetched
from mfalcon.kvcache.item_rows import RowPolicy
from mfalcon.kvcache.state import KVState
from mfalcon.models.base import Targets, context_codes
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Events, RankRequest, RankResult
from tests.items.oracle import delta_of, patched
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config, tokens

BOUND = 2e-6  # answers are float32
CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id
NEW = np.array([-7_000_000, 77, 10**15], dtype=np.int64)


class Replica:
    """A runner over a table that changes, on the reference backend."""

    def __init__(
        self, checkpoint: Checkpoint, policy: RowPolicy | None = None, budget: PoolBudget | None = None
    ) -> None:
        """budget: for the fastest backend."""
        served = any_reference(checkpoint.model) if budget is None else serve_any(checkpoint.model, "auto", budget)
        options = LiveOptions(policy or RowPolicy(), max_new_items=20)
        self.checkpoint = checkpoint
        self.live = LiveItems(served, checkpoint.items, checkpoint.fingerprint, options)
        self.cache = None
        if isinstance(served, ServedModel):
            self.cache = KVCache("f", served.pool, 1 << 20, Tombstones(), rows=self.live)
        self.runner = Runner(served, checkpoint.items, self.cache, 5, "v", live=self.live)
        self.deltas: list[Delta] = []
        self.tables = {"": checkpoint}

    def patch(self, delta: Delta) -> str:
        self.live.current = self.live.made(delta)
        self.deltas.append(delta)
        self.tables[self.live.current.name] = patched(self.checkpoint, self.deltas)
        return self.live.current.name

    def rank(self, events: Events, request: RankRequest) -> RankResult:
        with torch.inference_mode():
            return self.runner.rank(job(events, request))

    def check(self, events: Events, request: RankRequest, result: RankResult | None = None) -> RankResult:
        result = result or self.rank(events, request)
        truth = cold_scores(self.tables[result.items_version], events, request).numpy()
        assert (np.abs(result.task_scores - truth) <= BOUND * np.maximum(1, np.abs(truth))).all()
        return result


def job(events: Events, request: RankRequest) -> RankJob:
    return RankJob(request, Fetched(no_history(request.user_id, b"life").extended(events)), None)


def request_of(user_id: str = "ann", more: Sequence[int] = ()) -> RankRequest:
    return rank_request(user_id, [*ITEMS[:12].tolist(), 5_000_000, *NEW.tolist(), *more])


@pytest.mark.parametrize("architecture", ["dfgr", "hstu", "din"])
@pytest.mark.parametrize("columns", ["v", "s", "vbs"])
def test_answers_are_those_of_a_checkpoint_with_these_rows(architecture: str, columns: str) -> None:
    replica = Replica(small_checkpoint(architecture))
    events, request = random_events(20), request_of()
    assert replica.check(events, request).items_version == ""
    for seed, ids in enumerate([ITEMS[3:9], NEW[:2], np.concatenate([NEW, ITEMS[:4]]), ITEMS]):
        name = replica.patch(delta_of(replica.checkpoint, ids, seed, columns=columns))
        result = replica.check(events, request)
        assert result.items_version == name and name.startswith(f"{seed + 1}-")
        assert result.unknown.tolist() == ([12, 15] if seed == 1 else [12] if seed > 1 else [12, 13, 14, 15])


def test_biases_alone_leave_states_as_they_are() -> None:
    replica = Replica(CHECKPOINT)
    events, request = random_events(20), request_of()
    replica.check(events, request)
    replica.patch(delta_of(CHECKPOINT, ITEMS, columns="b"))
    assert replica.check(events, request).cache.encoded_tokens == 0


def test_what_follows_the_first_changed_row_is_encoded_again() -> None:
    replica = Replica(CHECKPOINT)
    events, request = random_events(20), request_of()
    replica.check(events, request)
    changed = int(events["item_id"][-1])
    first = int(np.flatnonzero(events["item_id"] == changed)[0])
    replica.patch(delta_of(CHECKPOINT, np.array([changed])))
    cache = replica.check(events, request).cache
    assert (cache.reused_tokens, cache.encoded_tokens) == (first, 20 - first)
    assert replica.check(events, request).cache.encoded_tokens == 0
    replica.patch(delta_of(CHECKPOINT, ITEMS[~np.isin(ITEMS, events["item_id"])]))  # of nobody's history
    assert replica.check(events, request).cache.encoded_tokens == 0


def test_an_item_that_comes_later_is_encoded_with_its_row() -> None:
    """Its events were those of the unknown item before."""
    replica = Replica(CHECKPOINT)
    events, request = random_events(20), request_of(more=[5_000_000])
    first = int(np.flatnonzero(events["item_id"] == 5_000_000)[0])
    replica.check(events, request)
    replica.patch(delta_of(CHECKPOINT, np.array([5_000_000]), columns="s"))
    result = replica.check(events, request)
    assert result.cache.reused_tokens == first and 12 not in result.unknown


def test_a_table_that_is_replaced_is_the_checkpoints_but_for_the_delta() -> None:
    replica = Replica(CHECKPOINT)
    events, request = random_events(20), request_of()
    replica.patch(delta_of(CHECKPOINT, np.concatenate([ITEMS, NEW])))
    replica.check(events, request)
    replica.patch(delta_of(CHECKPOINT, ITEMS[:2], 1, number=9, replaces=True))
    assert replica.check(events, request).unknown.tolist() == [12, 13, 14, 15]
    replica.patch(delta_of(CHECKPOINT, NEW[1:], 2))
    replica.check(events, request)
    replica.patch(Delta(0, CHECKPOINT.fingerprint, ITEMS[:0], replaces=True))
    assert np.array_equal(replica.check(events, request).scores, Replica(CHECKPOINT).rank(events, request).scores)


def test_work_that_has_begun_ends_with_the_table_it_began_with() -> None:
    """Encoded with the old one, scored after two swaps; the buffers that it reads are not written meanwhile."""
    replica = Replica(CHECKPOINT)
    events = random_events(20)
    jobs = [job(events, request_of(user)) for user in ("ann", "bob", "cat")]
    names = []
    with torch.inference_mode():
        for index, one in enumerate(jobs):
            names.append(replica.patch(delta_of(CHECKPOINT, np.concatenate([ITEMS, NEW]), index)))
            assert replica.runner.advance([one], 0.0) == [None]
        answers: list[RankResult] = []
        for _ in range(50):  # all of them in one batch
            open_jobs = [one for one in jobs if one.progress is not None]
            for one, answer in zip(open_jobs, replica.runner.advance(open_jobs, 0.0), strict=True):
                if answer is not None:
                    assert isinstance(answer, RankResult)
                    answers.append(replica.check(events, one.request, answer))
                    replica.runner.let_go(one)
            if len(answers) == len(jobs):
                break
    assert sorted(answer.items_version for answer in answers) == sorted(names)
    for one in jobs:
        assert replica.check(events, one.request).items_version == names[-1]


def test_policies() -> None:
    """frozen: a history has the rows of its encoding, candidates those of now. bounded: so for a while."""
    events, request = random_events(20), request_of()
    delta = delta_of(CHECKPOINT, ITEMS)
    for policy in (RowPolicy("frozen"), RowPolicy("bounded", keep_s=1e6), RowPolicy("bounded", keep_s=0.0)):
        replica = Replica(CHECKPOINT, policy)
        replica.check(events[:15], request)
        replica.patch(delta)
        result = replica.rank(events, request)
        is_kept = policy != RowPolicy("bounded", keep_s=0.0)
        assert result.cache.reused_tokens == (15 if is_kept else int(np.argmax(np.isin(events["item_id"], ITEMS))))
        old, new = (any_reference(table.model) for table in (CHECKPOINT, patched(CHECKPOINT, [delta])))
        assert isinstance(old, ServedModel) and isinstance(new, ServedModel)
        now = patched(CHECKPOINT, [delta])
        if not is_kept:
            replica.check(events, request)
            continue
        config = CHECKPOINT.model.config
        context = torch.from_numpy(context_codes(config.context_features, request.context, request.request_time_ms))
        with torch.inference_mode():
            state = user_state(old, tokens(CHECKPOINT, events[:15]), context, request.request_time_ms)
            assert isinstance(state, KVState)
            state = append(new, state, tokens(now, events[15:]))
            targets = Targets(torch.from_numpy(now.items.rows(request.candidates)), context)
            truth = score(new, state, targets, request.request_time_ms, 64).T.numpy()
        assert np.abs(result.task_scores - truth).max() <= BOUND
        replica.rank(events, request)


def test_counters_read_the_tags_of_new_items() -> None:
    config = small_config(with_counters=True)
    replica = Replica(small_checkpoint(config=config))
    events, request = random_events(20), request_of(more=[5_000_000])
    counts = np.arange(3 * len(request.candidates), dtype=np.int64).reshape(-1, 3)
    for seed, ids in enumerate([np.array([5_000_000, *NEW]), ITEMS]):
        name = replica.patch(delta_of(replica.checkpoint, ids, seed))
        one = job(events, request)
        one.counted = Counted({LikeRule.of(config): counts})
        with torch.inference_mode():
            result = replica.runner.rank(one)
        truth = cold_scores(replica.tables[name], events, request, counts).numpy()
        assert np.abs(result.task_scores - truth).max() <= BOUND


@pytest.mark.parametrize("architecture", ["dfgr", "din"])
def test_all_laws_hold_on_a_patched_table(architecture: str) -> None:
    """What is served after deltas is a model like any other: new rows lie behind the checkpoint's, as new items do."""
    base = small_checkpoint(architecture, config=small_config(architecture, max_history=40, window_chunk=7))
    replica, new = Replica(base), ITEMS[-1] + np.array([10**6, 10**7])
    deltas = [delta_of(base, np.concatenate([ITEMS[5:], new]), 1), delta_of(base, ITEMS[:9], 2)]
    for delta in deltas:
        replica.patch(delta)
    now = replica.live.current
    table = patched(base, deltas).items
    assert np.array_equal(now.items.rows(table.item_id), 1 + np.arange(len(table.item_id)))
    results = list(laws.check(Checkpoint(now.served.model, table, "patched")))
    assert sorted({result.law for result in results}) == [1, 2, 3, 4, 5, 6, 7]
    for result in results:
        assert result.holds, result


BAD: dict[str, tuple[dict[str, object], type[MFalconError], str]] = {
    "width": ({"vector": np.zeros((2, 11), np.float32)}, InvalidInput, "vector: got 'float32 (2, 11)'"),
    "dtype": ({"vector": np.zeros((2, 12), np.float64)}, InvalidInput, "must be float32 (2, 12)"),
    "nan": ({"vector": np.full((2, 12), np.nan, np.float32)}, InvalidInput, "no finite number in row 0"),
    "infinity": ({"bias": np.full((2, 2), np.inf, np.float32)}, InvalidInput, "bias: got 'no finite number in row 0"),
    "extreme": ({"vector": np.full((2, 12), 1e30, np.float32)}, InvalidInput, "at most 1e+15 in magnitude"),
    "twice": ({"item_id": np.array([5, 5])}, InvalidInput, "item_id: got '5 more than once'"),
    "nothing": ({"item_id": np.empty(0, np.int64), "vector": np.empty((0, 12), np.float32)}, InvalidInput, "no items"),
    "no columns": ({"vector": None}, InvalidInput, "rows without columns"),
    "ids": ({"item_id": np.array([1.0, 2.0])}, InvalidInput, "must be int64"),
    "foreign": ({"checkpoint": "fingerprint-dfgr-1"}, CheckpointError, "must be of fingerprint-dfgr-0"),
    "anybody's": ({"checkpoint": ""}, CheckpointError, "checkpoint: got rows of ''"),
    "older": ({"number": 1}, CheckpointError, "number: got 1, must be more than 1"),
    "gap": ({"number": 3}, CheckpointError, "number: got 3, must be 2: deltas follow each other without a gap"),
    "huge number": ({"number": 2**60}, InvalidInput, "number: got"),
    "side": ({"side": {"mood": np.zeros(2, np.int64)}}, InvalidInput, "side: got 'mood'"),
    "side shape": ({"side": {"genres": np.zeros((2, 5), np.uint8)}}, InvalidInput, "side.genres: got 'uint8 (2, 5)'"),
    "side value": ({"side": {"decade": np.array([0, 3])}}, InvalidInput, "side.decade: got 3, must be from 0 to 2"),
    "too many": (
        {"item_id": np.arange(10**6, 10**6 + 21), "vector": np.zeros((21, 12), np.float32)},
        InvalidInput,
        "21 items that the checkpoint does not know', must be at most 20",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_delta_is_refused_and_changes_nothing(what: str) -> None:
    changes, error, text = BAD[what]
    replica = Replica(CHECKPOINT)
    events, request = random_events(20), request_of()
    name = replica.patch(delta_of(CHECKPOINT, ITEMS[:5]))
    before = replica.check(events, request)
    good = {
        "number": 0,
        "checkpoint": CHECKPOINT.fingerprint,
        "item_id": ITEMS[:2],
        "vector": np.zeros((2, 12), np.float32),
    }
    with pytest.raises(error) as raised:
        replica.live.made(Delta(**(good | changes)))  # type: ignore[arg-type]
    assert text in str(raised.value)
    assert replica.live.current.name == name
    assert np.array_equal(replica.check(events, request).scores, before.scores)
    replica.patch(Delta(**good))  # type: ignore[arg-type]
    replica.check(events, request)


def test_a_model_that_ranks_no_items_has_no_deltas() -> None:
    checkpoint = small_checkpoint("lum")
    live = LiveItems(any_reference(checkpoint.model), checkpoint.items, checkpoint.fingerprint)
    with pytest.raises(InvalidInput, match="model: got 'small', must be one that ranks items"):
        live.made(delta_of(checkpoint, ITEMS))


def test_din_has_no_biases() -> None:
    checkpoint = small_checkpoint("din")
    live = LiveItems(any_reference(checkpoint.model), checkpoint.items, checkpoint.fingerprint)
    with pytest.raises(InvalidInput, match="must be absent: this model has no bias of items"):
        live.made(Delta(0, checkpoint.fingerprint, ITEMS[:2], bias=np.zeros((2, 2), np.float32)))


def test_what_was_made_and_never_served_leaves_no_trace() -> None:
    """The server shut down, say, or the model was exchanged, between making a version and swapping it in."""
    replica = Replica(CHECKPOINT)
    events, request = random_events(20), request_of()
    for seed in range(4):
        replica.live.made(delta_of(CHECKPOINT, np.concatenate([ITEMS, NEW]), 100 + seed))
        replica.patch(delta_of(CHECKPOINT, ITEMS[seed : seed + 4], seed))
        assert replica.check(events, request).unknown.tolist() == [12, 13, 14, 15]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("architecture", ["dfgr", "hstu", "din"])
def test_any_order_of_deltas_and_requests(architecture: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    replica = Replica(small_checkpoint(architecture))
    events = {user: random_events(60, index) for index, user in enumerate(("ann", "bob"))}
    length = {"ann": 4, "bob": 9}
    pool = np.concatenate([ITEMS, NEW, [5_000_000]])
    for step in range(14):
        if rng.random() < 0.5:
            ids = rng.choice(pool, int(rng.integers(1, len(pool))), replace=False)
            columns = str(rng.choice(["v", "b", "s", "vbs"] if architecture != "din" else ["v", "s"]))
            replica.patch(delta_of(replica.checkpoint, ids, step, columns=columns, replaces=bool(rng.random() < 0.2)))
        user = str(rng.choice(["ann", "bob"]))
        length[user] = min(60, length[user] + int(rng.integers(0, 9)))
        replica.check(events[user][: length[user]], request_of(user, [5_000_000]))


def test_on_the_fused_kernel_in_float32() -> None:
    """A patched table and a checkpoint with these rows score alike, whatever was reused. The products that make vectors
    of tags are rounded by how many rows they are made of, so not to the bit.
    """
    checkpoint = small_checkpoint(dtype=torch.float32)
    budget = PoolBudget(1 << 22, 1, checkpoint.model.config.max_history)
    events, request = random_events(20), request_of()
    deltas = [delta_of(checkpoint, np.concatenate([ITEMS[4:], NEW]), 1), delta_of(checkpoint, ITEMS[:9], 2)]

    def scores(table: Checkpoint, changes: Sequence[Delta]) -> np.ndarray:
        served = serve_any(table.model, "auto", budget)
        live = LiveItems(served, table.items, table.fingerprint)
        assert isinstance(served, ServedModel)
        cache = KVCache("f", served.pool, 1 << 20, Tombstones(), rows=live)
        runner = Runner(served, table.items, cache, 5, "v", live=live)
        with torch.inference_mode():
            for delta in changes:
                runner.rank(job(events[:13], request))
                live.current = live.made(delta)
            return runner.rank(job(events, request)).task_scores

    one, other = scores(checkpoint, deltas), scores(patched(checkpoint, deltas), [])
    assert np.abs(one - other).max() <= 2e-6


def test_what_is_reused_after_a_delta_moves_no_score_by_a_bit() -> None:
    """Law 7 with a patched table: a state of rows that have not changed is that of a history encoded now."""
    checkpoint = small_checkpoint(dtype=torch.float32)
    events, request = random_events(20), request_of()
    others = ITEMS[~np.isin(ITEMS, events["item_id"])]
    answers = []
    for is_cold in (False, True):
        replica = Replica(checkpoint, budget=PoolBudget(1 << 22, 1, checkpoint.model.config.max_history))
        for seed, ids in enumerate([ITEMS, others, np.concatenate([others[:3], NEW]), others]):
            replica.live.current = replica.live.made(delta_of(checkpoint, ids, seed))
            if not is_cold:
                replica.rank(events, request)
        answers.append(replica.rank(events, request))
    assert [answer.cache.encoded_tokens for answer in answers] == [0, 20]
    assert np.array_equal(answers[0].task_scores, answers[1].task_scores)
