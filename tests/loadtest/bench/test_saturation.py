"""The baseline of `bench saturation` answers what mfalcon answers, and a search on both is one page."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from loadtest.bench.masked_server import start
from loadtest.bench.saturation import MASKED, MFALCON, SaturationOptions, page, run
from loadtest.load.messages import append_message, rank_message
from loadtest.report.table import Table
from mfalcon.errors import CheckpointError, ConfigError
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from proto import ranking_pb2 as pb
from proto.ranking_pb2_grpc import RankingStub
from tests.small import NOW_MS, cold_scores, random_events, rank_request, small_checkpoint

LENGTH = 23


@pytest.fixture
def loaded() -> Checkpoint:
    return small_checkpoint("dfgr")


@pytest.fixture
def masked(loaded: Checkpoint) -> Iterator[RankingStub]:
    server, port = start(loaded, 0)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield RankingStub(channel)
    server.stop(None).wait()


def test_the_baseline_gives_the_scores_of_the_model(masked: RankingStub, loaded: Checkpoint) -> None:
    history, asked = random_events(LENGTH), rank_request("anna", range(1, 8))
    for events in (history[:5], history[5:]):
        appended = masked.AppendEvents(append_message("anna", events, None))
    assert appended.history_len == LENGTH
    message = rank_message("anna", asked.candidates, request_time_ms=NOW_MS, context=asked.context)
    answer = masked.Rank(message)
    expected = cold_scores(loaded, history, asked).numpy()
    found = np.array(answer.task_scores).reshape(len(answer.tasks), -1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert len(answer.scores) == 7
    masked.DeleteUser(pb.DeleteUserRequest(user_id="anna"))
    assert masked.Rank(message).history_len == 0


@pytest.mark.thorough  # test_dlrm_serving has a search, and this file what the baseline answers
def test_a_search_on_both_servers_is_one_page(tmp_path: Path, loaded: Checkpoint) -> None:
    checkpoint.save(tmp_path / "small", loaded.model, loaded.items)
    impossible = SaturationOptions(
        (tmp_path / "small",), candidates=5, history=9, p99_ms=1e-3, seconds=2, kinds=(("cold", 1.0),)
    )
    result = run(impossible, lambda _: None)
    assert [(row.server, row.kind, row.rate) for row in result.rows] == [(MASKED, "any", None), (MFALCON, "cold", None)]
    assert result.rows[1].encoded == 1
    assert all(row.requests > 0 and row.p50_ms is not None for row in result.rows)
    assert result.complaints == ()
    table = next(part for part in page(result) if isinstance(part, Table))
    assert [row[3] for row in table.rows] == ["none", "none"]


@pytest.mark.parametrize(
    ("wrong", "why"), [({"rate": 1e9}, "rate: got 1000000000"), ({"candidates": 10**8}, "candidates: got")]
)
def test_what_cannot_be_asked_is_refused_before_anything_starts(
    tmp_path: Path, loaded: Checkpoint, wrong: dict[str, Any], why: str
) -> None:
    checkpoint.save(tmp_path / "small", loaded.model, loaded.items)
    said: list[str] = []
    with pytest.raises(ConfigError, match=why):
        run(replace(SaturationOptions((tmp_path / "small",)), **wrong), said.append)
    assert not said


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        run(SaturationOptions((tmp_path / "nowhere",)), print)


@pytest.mark.slow
def test_ctrl_c_ends_the_whole_bench(tmp_path: Path, loaded: Checkpoint) -> None:
    checkpoint.save(tmp_path / "small", loaded.model, loaded.items)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "requests a second" in text:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(asyncio.CancelledError):
        run(SaturationOptions((tmp_path / "small",), candidates=5, history=9, seconds=1), say)
    assert not any(MFALCON in text for text in said)
