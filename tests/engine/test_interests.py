"""Interests in an engine: a group is one forward a condition, what is computed ahead is of its history alone, and a
rank of what was proposed is a rank of those candidates.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from mfalcon.engine.compose import EngineConfig, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.ensemble import EnsembleOptions, MemberOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.errors import ConfigError, InvalidInput, UnknownModel
from mfalcon.interests import Interests, InterestsRequest, Nearest, interleaved
from mfalcon.laws import masked_forward
from mfalcon.models.base import Targets
from mfalcon.models.conditions import conditions
from mfalcon.models.config_parts import LumConfig
from mfalcon.models.lum import LUM
from mfalcon.types import Append, Retrieve, no_events
from mfalcon.window import WindowRule
from tests.small import NOW_MS, random_events, rank_request, small_checkpoint, small_config, tokens

RANKER, ASKED = small_checkpoint("dfgr"), small_checkpoint("lum")
NAMES = tuple(condition.name for condition in conditions(ASKED.model.config))
EVENTS = random_events(40)
BOUND = 1e-5  # float64, but vectors travel as float32


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Engine]:
    options = RankerOptions(microbatch=16)
    models = [(RANKER, replace(options, name="ranker")), (ASKED, replace(options, name="lum"))]
    engine = compose_all(models, EngineConfig(threads=1, ranker=options))
    try:
        await asyncio.to_thread(engine.wait_ready, 20)
        await engine.start()
        yield engine
    finally:
        await engine.close()


def asked(names: tuple[str, ...], top: int = 0, *, num_recent: int = 0, time_ms: int = NOW_MS) -> InterestsRequest:
    recent = EVENTS[30 : 30 + num_recent] if num_recent else no_events()
    return InterestsRequest("ann", names, top, time_ms, recent)


def expected(num_events: int, names: tuple[str, ...], time_ms: int = NOW_MS) -> np.ndarray:
    """One masked forward for each condition over the window."""
    config = ASKED.model.config
    start = WindowRule(config.max_history, config.window_chunk).start(num_events)
    rows = [NAMES.index(name) for name in names]
    with torch.inference_mode():
        one = [
            masked_forward(
                ASKED.model,
                tokens(ASKED, EVENTS[start:num_events]),
                Targets(torch.tensor([row]), torch.empty(0, dtype=torch.int64)),
                time_ms,
            )
            for row in rows
        ]
    return torch.cat(one).numpy()


def assert_close(found: Interests, num_events: int) -> None:
    assert np.abs(found.vectors - expected(num_events, found.conditions)).max() <= BOUND


async def test_a_group_is_one_forward_a_condition() -> None:
    async with running() as engine:
        await engine.append_events("ann", Append(EVENTS[:30], 0))
        some = ("not_like", NAMES[2], NAMES[2], "like")
        for names in (NAMES, some, some):
            found = await engine.interests(asked(names), None)
            assert (found.conditions, found.nearest, found.history_len) == (names, (), 30)
            assert found.vectors.dtype == np.float32
            assert_close(found, 30)
        assert found.cache.encoded_tokens == 0 and not found.computed_ahead
        assert found.model_version == engine.models[1].version
        recent = await engine.interests(asked(NAMES, num_recent=3), None, "lum")
        assert_close(recent, 33)
        nobody = await engine.interests(replace(asked(NAMES), user_id="nobody"), None)
        assert_close(nobody, 0)


async def test_nearest_items_are_those_of_the_logits_within_the_category() -> None:
    model, items = ASKED.model, ASKED.items
    assert isinstance(model, LUM)
    async with running() as engine:
        await engine.append_events("ann", Append(EVENTS[:30], 0))
        found = await engine.interests(asked(NAMES, 7), None)
    with torch.inference_mode():
        vectors = torch.from_numpy(found.vectors).double()
        logits = model.logits(vectors, torch.arange(model.config.num_items)).numpy()
    members = model.members().numpy()
    for at, (condition, nearest) in enumerate(zip(conditions(model.config), found.nearest, strict=True)):
        is_of = members[1:, condition.category]
        order = np.argsort(-np.where(is_of, logits[at, 1:], -np.inf))[: min(7, int(is_of.sum()))]
        assert nearest.item_ids.tolist() == items.item_id[order].tolist()
        assert np.abs(nearest.scores - logits[at, 1:][order]).max() < 1e-3


async def test_what_is_computed_ahead_is_used_for_its_history_alone() -> None:
    async with running() as engine:
        await engine.append_events("ann", Append(EVENTS[:30], 0))
        await engine.prefill("ann", None, "lum", NAMES[:3], NOW_MS)
        ahead = await engine.interests(asked(NAMES[2:0:-1]), None)
        assert ahead.computed_ahead and ahead.history_len == 30
        assert_close(ahead, 30)
        for other in (
            asked(NAMES[:4]),  # one of them was not computed
            asked(NAMES[:1], num_recent=2),
            asked(NAMES[:1], time_ms=NOW_MS + 3_600_000),
            asked(NAMES[:1], time_ms=NOW_MS - 1),
        ):
            assert not (await engine.interests(other, None)).computed_ahead
        await engine.append_events("ann", Append(EVENTS[30:33], 30))
        after = await engine.interests(asked(NAMES[:3], 5), None)
        assert not after.computed_ahead
        assert_close(after, 33)
        # A rank of what is proposed reads the interests of the new history too.
        wish = Retrieve("lum", NAMES[:3], 9)
        ranked = await engine.rank(replace(rank_request("ann", []), retrieve=wish), None, "ranker")
        proposed = interleaved((await engine.interests(asked(NAMES[:3], 9), None)).nearest, 9)
        assert ranked.candidates.tolist() == proposed.tolist()


async def test_a_deletion_forgets_what_was_computed_ahead() -> None:
    async with running() as engine:
        await engine.append_events("ann", Append(EVENTS[:30], 0))
        await engine.prefill("ann", None, "", NAMES[:2], NOW_MS)
        await engine.delete_user("ann")
        assert_close(await engine.interests(asked(NAMES[:2]), None), 0)
        await engine.append_events("ann", Append(EVENTS[:30], 0))  # the very same history, of another life
        assert not (await engine.interests(asked(NAMES[:2]), None)).computed_ahead


async def test_a_rank_of_what_is_proposed_is_a_rank_of_these_candidates() -> None:
    async with running() as engine:
        await engine.append_events("ann", Append(EVENTS[:30], 0))
        request = rank_request("ann", [], top_k=3)
        found = await engine.rank(replace(request, retrieve=Retrieve("", ("like", NAMES[1]), 11)), None, "ranker")
        assert len(found.candidates) == found.num_scored == 11 == len(set(found.candidates.tolist()))
        given = await engine.rank(replace(request, candidates=found.candidates), None, "ranker")
        assert (given.scores == found.scores).all() and (given.top == found.top).all()
        assert not len(given.candidates) and not len(found.unknown)


async def test_a_model_that_ranks_has_no_interests() -> None:
    async with running() as engine:
        with pytest.raises(InvalidInput, match="ranks items"):
            await engine.interests(asked(NAMES[:1]), None, "ranker")
        with pytest.raises(InvalidInput, match="conditions of the model"):
            await engine.interests(asked(("like:Nothing",)), None)
        with pytest.raises(UnknownModel):
            await engine.interests(asked(NAMES[:1]), None, "absent")
        assert [info.conditions for info in engine.models] == [(), NAMES]


async def test_a_reload_to_other_conditions_answers_by_one_version() -> None:
    async with running() as engine:
        await engine.append_events("ann", Append(EVENTS[:30], 0))
        before = await engine.interests(asked(("like", "not_like")), None)
        config = small_config("lum").model_copy(update={"lum": LumConfig(task="like", category="decade")})
        other = replace(small_checkpoint("lum", seed=1, config=config), fingerprint="another fingerprint")
        reloading = asyncio.create_task(engine.reload("lum", lambda: other))
        seen = {before.model_version}
        while not reloading.done():
            answer = await engine.interests(asked(("like", "not_like")), None)
            seen.add(answer.model_version)
            if answer.model_version == before.model_version:
                assert np.array_equal(answer.vectors, before.vectors)
        await reloading
        after = await engine.interests(asked(("like", "not_like")), None)
        assert after.model_version == engine.models[1].version != before.model_version
        assert np.abs(after.vectors - before.vectors).max() > 1e-3


async def test_such_a_model_is_no_member_of_an_ensemble() -> None:
    models = [(RANKER, RankerOptions(name="ranker")), (ASKED, RankerOptions(name="lum"))]
    ensemble = EnsembleOptions("both", (MemberOptions("ranker", 0.5), MemberOptions("lum", 0.5)))
    with pytest.raises(ConfigError, match="conditions"):
        compose_all(models, EngineConfig(threads=1), ensembles=[ensemble])


def test_conditions_take_turns() -> None:
    def of(*ids: int) -> Nearest:
        return Nearest(np.array(ids, dtype=np.int64), np.zeros(len(ids), dtype=np.float32))

    assert interleaved([of(1, 2, 3), of(2, 9), of()], 10).tolist() == [1, 2, 9, 3]
    assert interleaved([of(1, 2, 3), of(2, 9), of()], 2).tolist() == [1, 2]
    assert interleaved([], 5).tolist() == []
    assert dataclasses.is_dataclass(Nearest)
