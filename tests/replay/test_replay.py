"""What is captured is played again: by the same checkpoint the same scores come out, to the bit on the fused kernel,
whatever was cached then; by another one it is told what moved.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from mfalcon.capture.reader import Captured, ReadCounts
from mfalcon.engine.engine import Engine
from mfalcon.engine.ensemble import EnsembleOptions, MemberOptions
from mfalcon.engine.histories import HistoryOptions
from mfalcon.merging.merge import Merge
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.replay.compare import spearman
from mfalcon.replay.player import PlayedMerge, Player, PlayerOptions
from mfalcon.replay.report import Report, replay
from mfalcon.types import Append, DenseFeatures, RankRequest
from tests.capture.capturing import capturing, options, read_all
from tests.small import NOW_MS, random_events, rank_request, small_checkpoint, small_config

FLOAT32 = small_checkpoint(dtype=torch.float32)
OTHER = small_checkpoint(dtype=torch.float32, seed=1)
ITEMS = FLOAT32.items.item_id[:23].tolist()
HISTORIES = HistoryOptions(log_max_events=64, log_slack=16)


def requests(user: str, seed: int) -> list[RankRequest]:
    """Of every kind: with context, recent events, dense features, a part of them, duplicates and unknown items."""
    rng = np.random.default_rng(seed)
    candidates = [*rng.permutation(ITEMS).tolist(), 5_000_000, ITEMS[0]]
    n = len(candidates)
    late = random_events(3, seed, NOW_MS - 10**6)
    return [
        rank_request(user, candidates, top_k=5),
        rank_request(user, candidates[: 1 + seed], recent=late),
        RankRequest(
            user,
            np.array(candidates),
            3,
            NOW_MS + seed,
            late[:0],
            {"surface": 2, "hour": 3},
            dense=DenseFeatures(("price",), rng.normal(size=n).astype(np.float32)),
        ),
    ]


async def traffic(engine: Engine, names: Sequence[str] = ("",)) -> int:
    """Users whose histories grow, slide and are cut; returns the number of ranks."""
    num = 0
    for turn in range(6):
        for at, user in enumerate(("ann", "bob", "cid")):
            if at < 2:
                events = random_events(3 + 11 * turn * (at + 1), turn)
                events["time_ms"] += 10**8 * turn
                await engine.append_events(user, Append(events, late_events="insert"))
            for name in names:
                asked = requests(user, at + turn)
                await asyncio.gather(*(engine.rank(request, None, name) for request in asked))
                num += len(asked)
    return num


def play(captured: Sequence[Captured], player: Player, against: Player | None = None) -> Report:
    try:
        return replay(captured, ReadCounts(), player, against)
    finally:
        player.close()
        if against is not None:
            against.close()


async def capture_of(directory: Path, *checkpoints: Checkpoint) -> list[Captured]:
    async with capturing(options(directory), *checkpoints, histories=HISTORIES) as engine:
        num = await traffic(engine, [info.name for info in engine.models])
    captured, counts = read_all(directory)
    assert counts.read == num and counts.skipped == 0
    return captured


@pytest.mark.parametrize(("threads", "microbatch"), [(1, 7), (2, 16)])
async def test_the_same_checkpoint_gives_the_same_scores_to_the_bit(
    tmp_path: Path, threads: int, microbatch: int
) -> None:
    captured = await capture_of(tmp_path, FLOAT32)
    player = Player({"": FLOAT32}, PlayerOptions(threads, microbatch=microbatch))
    is_exact = player.is_exact
    report = await asyncio.to_thread(play, captured, player)
    same, num = report.same, len(captured)
    assert same.num == num and report.num == num and not report.failed and report.holds
    assert same.worst_error <= 1e-5
    if is_exact:
        assert same.num_equal == num
    assert report.captured is not None and report.captured.all.num_top_changed == 0
    assert sum(report.reused.values()) > 0  # states are kept from one request of a user to the next


@pytest.mark.parametrize(
    "make",
    [
        lambda: small_checkpoint("din", torch.float32),
        pytest.param(lambda: small_checkpoint("hstu", torch.float32), marks=pytest.mark.thorough),
        pytest.param(lambda: small_checkpoint(dtype=torch.float64), marks=pytest.mark.thorough),
        lambda: small_checkpoint(dtype=torch.float32, config=small_config(with_counters=True)),
    ],
    ids=["din", "hstu", "float64", "counters"],
)
async def test_every_kind_of_model_gives_its_scores_again(tmp_path: Path, make: Callable[[], Checkpoint]) -> None:
    checkpoint = make()
    captured = await capture_of(tmp_path, checkpoint)
    report = await asyncio.to_thread(play, captured, Player({"": checkpoint}, PlayerOptions(1, microbatch=16)))
    assert report.same.num == len(captured) and report.holds and not report.failed
    assert report.same.worst_error <= 1e-5 and not report.without_counters
    if checkpoint.model.config.counters is not None:
        assert any(numbers.any() for one in captured for numbers in one.item_counts.values())


async def test_an_ensemble_gives_its_scores_again(tmp_path: Path) -> None:
    din = small_checkpoint("din", torch.float32)
    ensemble = EnsembleOptions("both", (MemberOptions("m0", 1.0, None), MemberOptions("m1", 3.0, None)), budget_s=60)
    async with capturing(options(tmp_path), FLOAT32, din, histories=HISTORIES, ensembles=(ensemble,)) as engine:
        num = await traffic(engine, ["both"])
        infos = {info.name: info for info in engine.models}
    captured, _ = read_all(tmp_path)
    merge = PlayedMerge("both", Merge("logit", infos["both"].task_infos), (1.0, 3.0))
    player = Player({"m0": FLOAT32, "m1": din}, PlayerOptions(2, microbatch=16), merge)
    report = await asyncio.to_thread(play, captured, player)
    assert report.same.num == num and report.same.worst_error <= 1e-5 and report.holds


async def test_another_checkpoint_is_told_by_what_moved(tmp_path: Path) -> None:
    captured = await capture_of(tmp_path, FLOAT32)
    players = [Player({"": one}, PlayerOptions(1, microbatch=16)) for one in (FLOAT32, OTHER)]
    told = (await asyncio.to_thread(play, captured, *players)).told()
    assert told["holds"] and told["num"] == len(captured)
    same, moved = told["captured"], told["moved"]
    assert isinstance(same, dict) and isinstance(moved, dict)
    assert same["top10_overlap"] == 1 and same["top1_changed"] == 0
    assert moved["num"] == len(captured) and 0 < moved["top10_overlap"] < 1 and 0 < moved["top1_changed"] <= 1
    for numbers in moved["tasks"].values():
        assert -1 <= numbers["spearman_min"] <= numbers["spearman_mean"] < 0.99 and numbers["max_abs_error"] > 0
    parts = moved["by_history_len"]
    assert list(parts) == ["0", "1-31", "32-127", "128-511"]
    assert sum(part["num"] for part in parts.values()) == moved["num"]
    assert sum(part["num"] for part in moved["by_tier"].values()) == moved["num"]
    worst = moved["worst"]
    assert len(worst) == 10 and worst[0]["user"].startswith("tag of ")
    assert [one["top_overlap"] for one in worst] == sorted(one["top_overlap"] for one in worst)
    latency = told["latency"]
    assert isinstance(latency, dict) and set(latency) == {"captured", "checkpoint", "against"}


async def test_a_model_that_reads_what_was_not_captured_says_so(tmp_path: Path) -> None:
    captured = await capture_of(tmp_path, FLOAT32)
    counting = small_checkpoint(dtype=torch.float32, config=small_config(with_counters=True), seed=3)
    counting = dataclasses.replace(counting, fingerprint="another one")
    report = await asyncio.to_thread(play, captured, Player({"": counting}, PlayerOptions(1, microbatch=16)))
    assert report.without_counters == len(captured) and report.same.num == 0 and not report.failed


async def test_scores_that_are_not_those_of_the_checkpoint_do_not_hold(tmp_path: Path) -> None:
    """As a capture of another kernel, or a fault of ours, would have them."""
    captured = await capture_of(tmp_path, FLOAT32)
    changed = captured[4]
    assert changed.task_scores is not None
    spoilt = changed.task_scores.copy()
    spoilt[0, 0] += 0.01
    object.__setattr__(changed, "task_scores", spoilt)
    report = await asyncio.to_thread(play, captured, Player({"": FLOAT32}, PlayerOptions(1, microbatch=16)))
    assert report.same.num == len(captured) and report.same.num_equal < len(captured) and not report.holds


def test_rank_correlation_is_that_of_the_books() -> None:
    a = np.array([106, 100, 86, 101, 99, 103, 97, 113, 112, 110], dtype=np.float32)
    b = np.array([7, 27, 2, 50, 28, 29, 20, 12, 6, 17], dtype=np.float32)
    assert spearman(a, b) == pytest.approx(-29 / 165)
    ties = np.array([1, 2, 2, 3], dtype=np.float32), np.array([1, 3, 2, 4], dtype=np.float32)
    assert spearman(*ties) == pytest.approx(0.9486833)
    assert np.isnan(spearman(a, np.ones(10, dtype=np.float32))) and spearman(a, a) == pytest.approx(1)
