"""Candidates in parts, a core each: the same scores, one barrier, and nobody works for a call that has ended."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mfalcon.backends.choice import REFERENCE
from mfalcon.backends.events import serve_events
from mfalcon.backends.parts import LEAST, InParts
from mfalcon.engine.workers import take_cores
from mfalcon.models.base import EventRanker, EventSide, EventTokens, Reader, Targets, event_tokens
from tests.small import random_events, small_checkpoint, some_rows

LOADED = small_checkpoint("din")


def ranker() -> EventRanker:
    assert isinstance(LOADED.model, EventRanker)
    return LOADED.model


PLAIN = serve_events(ranker(), REFERENCE)


class Watched:
    """A reader that tells how many candidates it was given, and with how many cores. num_parts: that come at once."""

    def __init__(self, num_parts: int = 1) -> None:
        self.seen: list[tuple[int, int, bool]] = []
        self._together = threading.Barrier(num_parts, timeout=60)

    def read(self, events: EventTokens, context: Tensor, time_ms: int) -> EventSide:
        """See `Reader`."""
        return PLAIN.reader.read(events, context, time_ms)

    def raw(self, side: EventSide, targets: Targets, microbatch: int) -> Tensor:
        """See `Reader`: passes only when all parts are here."""
        self._together.wait()
        self.seen.append((len(targets.rows), torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return PLAIN.reader.raw(side, targets, microbatch)


class Failing(Watched):
    """A reader that fails on the parts of a thread: of the caller's, or of the others."""

    def __init__(self, caller: bool) -> None:
        super().__init__()
        self._caller, self._thread, self.num_working = caller, threading.get_ident(), 0

    def raw(self, side: EventSide, targets: Targets, microbatch: int) -> Tensor:
        """See `Reader`."""
        if (threading.get_ident() == self._thread) == self._caller:
            raise RuntimeError("made up")
        self.num_working += 1
        time.sleep(0.05)
        self.num_working -= 1
        return super().raw(side, targets, microbatch)


@pytest.fixture(autouse=True)
def cores_as_before() -> Iterator[None]:
    cores = torch.get_num_threads()
    yield
    take_cores(cores)


def asked(num: int) -> tuple[EventTokens, Targets]:
    config = LOADED.model.config
    dense = torch.randn(num, len(config.dense_features), dtype=LOADED.model.dtype)
    targets = Targets(some_rows(num), torch.tensor([1] * len(config.context_features)), dense)
    return event_tokens(random_events(7), LOADED.items, torch.device("cpu")), targets


def raw(reader: Reader, num: int) -> Tensor:
    torch.manual_seed(num)
    events, targets = asked(num)
    return reader.raw(reader.read(events, targets.context, 0), targets, 16)


@pytest.mark.parametrize("cores", [1, 2, 3, 5])
@pytest.mark.parametrize("num", [1, 63, 2 * LEAST - 1, 2 * LEAST, 5 * LEAST + 3])
@torch.inference_mode()
def test_parts_move_no_score(cores: int, num: int) -> None:
    expected, readers = raw(PLAIN.reader, num), (InParts(Watched()), serve_events(ranker()).reader)
    take_cores(cores)
    for reader in readers:
        assert torch.allclose(raw(reader, num), expected, rtol=1e-12, atol=1e-12)
        assert torch.get_num_threads() == cores


@pytest.mark.parametrize("is_inference", [True, False])
def test_each_part_has_a_core_of_its_own(is_inference: bool) -> None:
    take_cores(3)
    watched = Watched(num_parts=3)
    with torch.inference_mode(is_inference):
        raw(InParts(watched), 3 * LEAST + 1)
    assert sorted(watched.seen) == [(LEAST, 1, is_inference)] * 2 + [(LEAST + 1, 1, is_inference)]


def test_a_caller_of_one_core_and_few_candidates_stay_in_one_part() -> None:
    for cores, num in ((1, 10 * LEAST), (3, 2 * LEAST - 1)):
        take_cores(cores)
        watched = Watched()
        raw(InParts(watched), num)
        assert watched.seen == [(num, cores, False)]


@pytest.mark.parametrize("caller", [True, False])
def test_a_part_that_fails_ends_the_call_after_the_others(caller: bool) -> None:
    take_cores(2)
    failing = Failing(caller)
    parts = InParts(failing)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="made up"):
            raw(parts, 4 * LEAST)
        assert failing.num_working == 0 and torch.get_num_threads() == 2


def test_threads_end_with_the_model() -> None:
    take_cores(2)
    others, served = set(threading.enumerate()), serve_events(ranker())
    raw(served.reader, 4 * LEAST)
    its_own = set(threading.enumerate()) - others
    assert its_own
    del served
    gc.collect()
    for thread in its_own:
        thread.join(timeout=60)
        assert not thread.is_alive()
