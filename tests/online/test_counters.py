"""Online equals offline for a model that reads streaming counters, through gRPC, under either visibility. `make
thorough` adds the other visibilities, parts and kinds of models.
"""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.faults.redis_server import RedisServer
from mfalcon.cli.process import serving
from mfalcon.cli.replay import replay_online
from mfalcon.models import checkpoint
from mfalcon.models.base import TaskRanker
from mfalcon.models.config_features import COUNTERS
from mfalcon.models.registry import build
from mfalcon.train.counters import counters_config
from mfalcon.train.recipes import model_config
from mfalcon.train.sequences import Visibility
from mfalcon.train.splits import TEST, TRAIN, split
from mfalcon.train.synthetic import synthetic
from mfalcon_client import Client, InvalidArgument

DATASET = synthetic(num_users=30, num_items=60, events_per_user=20, seed=3)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of either kind of model."""
    directory = tmp_path_factory.mktemp("counters")
    return {kind: saved(directory / kind, kind) for kind in ("dfgr", "din")}


def saved(directory: Path, kind: str) -> Path:
    counters = counters_config(DATASET, split(DATASET, "A") == TRAIN, is_strict=True, max_events=18)
    chunk = 12 if kind == "dfgr" else None
    torch.manual_seed(0)
    model = build(model_config(DATASET, kind, dim=16, max_history=24, window_chunk=chunk, counters=counters))
    if isinstance(model, TaskRanker):
        torch.nn.init.normal_(model.dense.last.weight, std=0.1)
    checkpoint.save(directory, model, DATASET.items)
    return directory


@pytest.mark.parametrize(
    ("kind", "visibility", "part"),
    [
        ("dfgr", "strict", "A"),
        ("dfgr", "order", "B"),
        ("din", "strict", "A"),
        pytest.param("dfgr", "order", "A", marks=pytest.mark.thorough),
        pytest.param("din", "order", "A", marks=pytest.mark.thorough),
        pytest.param("din", "order", "B", marks=pytest.mark.thorough),
    ],
)
def test_online_equals_offline(checkpoints: dict[str, Path], kind: str, visibility: Visibility, part: str) -> None:
    saved = checkpoints[kind]
    loaded = checkpoint.load(saved)
    chosen = split(DATASET, "A" if part == "A" else "B") == TEST
    with serving(saved) as served, Client(served.grpc) as client:
        assert client.get_model().counters == COUNTERS
        result = replay_online(client, loaded.model, DATASET, chosen, visibility)
        with pytest.raises(InvalidArgument, match=r"features\.names\[0\]: got 'item_events', must be a feature that"):
            client.rank("ann", [1], features={"item_events": np.ones(1, dtype=np.float32)})
        last = client.rank("ann", DATASET.items.item_id)
    assert result.holds, result
    assert result.num_rows == np.count_nonzero(chosen)
    assert last.counters_version > 0 and not last.counters_stale


@pytest.mark.parametrize("kind", ["dfgr", pytest.param("din", marks=pytest.mark.thorough)])
def test_online_equals_offline_with_the_log_in_redis(
    checkpoints: dict[str, Path], kind: str, redis_server: RedisServer
) -> None:
    """Two replicas: what one has counted the other reads."""
    saved = checkpoints[kind]
    loaded = checkpoint.load(saved)
    chosen = split(DATASET, "A") == TEST
    flags = ("--redis-url", redis_server.url, "--redis-timeout-ms", "1000")
    with serving(saved, *flags) as one, serving(saved, *flags) as two:
        with Client(one.grpc) as client:
            result = replay_online(client, loaded.model, DATASET, chosen, "strict")
            last = client.rank("ann", DATASET.items.item_id)
        with Client(two.grpc) as other:
            end = time.monotonic() + 60
            while (there := other.rank("ann", DATASET.items.item_id)).counters_version != last.counters_version:
                assert time.monotonic() < end, "the other replica never followed"
                time.sleep(0.05)
    assert result.holds, result
    assert result.num_rows == np.count_nonzero(chosen)
    assert last.counters_version > 0 and not last.counters_stale and not there.counters_stale
    np.testing.assert_array_equal(there.scores, last.scores)
