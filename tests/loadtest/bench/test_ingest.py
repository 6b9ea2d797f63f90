"""The benchmark of ingest finds every event, after kills too; and would find one that is missing."""

from pathlib import Path

import numpy as np
import pytest

from loadtest.bench.ingest import IngestBenchOptions, _num_wrong, run
from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import shape_named
from mfalcon.models import checkpoint
from mfalcon.types import EVENT_DTYPE
from mfalcon_client import AsyncClient
from tests.server.harness import serving


async def test_a_missing_an_odd_and_a_doubled_event_are_each_found() -> None:
    events = np.array([(item, 1, 1.0, 1_000 + item) for item in range(12)], dtype=EVENT_DTYPE)
    user_of = np.arange(12) % 4
    async with serving() as running:
        target = running.addresses.grpc
        async with AsyncClient(target) as client:
            for user, own in ((0, [0, 4, 8]), (1, [1, 9]), (2, [2, 6, 6]), (3, [3, 7, 11, 11])):
                await client.append_events(f"u{user}", events[own])
        assert await _num_wrong(target, user_of, events) == 3


@pytest.mark.thorough
def test_kills_of_both_ends_lose_and_double_nothing(tmp_path: Path) -> None:
    loaded = random_checkpoint(shape_named("tiny"), 40, max_history=32)
    checkpoint.save(tmp_path / "tiny", loaded.model, loaded.items)
    options = IngestBenchOptions(events=30_000, users=2_000, window=2_000, logs=("file", "redis"), kills=2)
    result = run(tmp_path / "tiny", options, lambda _: None)
    assert [(row.wrong, row.kills) for row in result.rows] == [(0, 4), (0, 4)]
