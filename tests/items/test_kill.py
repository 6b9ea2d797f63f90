"""kill -9 in the middle of a delta: whoever starts after it has all of the delta, or nothing."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from loadtest.faults.redis_server import free_port
from mfalcon.cli.process import Served, serving
from mfalcon.items.delta_file import SUFFIX, read_delta, read_manifest, write_delta
from mfalcon.items.messages import messages
from mfalcon.models import checkpoint
from proto.ranking_pb2 import RankRequest, RankResponse, UpdateItemsRequest
from proto.ranking_pb2_grpc import AdminStub, RankingStub
from tests.items.oracle import delta_of, numbered, patched
from tests.small import cold_scores, random_events, rank_request, small_checkpoint

WAIT_S = 60
REQUEST = rank_request("ann", [*small_checkpoint().items.item_id[:9].tolist(), 77, 10**15])
BOUND = 2e-5  # float32 on the fused kernel, beside the definition
WRITER = """
import itertools, sys
from pathlib import Path
import numpy as np
from mfalcon.items.delta import Delta
from mfalcon.items.delta_file import write_delta
for number in itertools.count(1):
    ids = np.arange(100_000)
    write_delta(Path(sys.argv[1]), Delta(number, "f" * 64, ids, np.full((len(ids), 4), number, np.float32)))
"""


def test_a_writer_that_is_killed_leaves_whole_deltas(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as process:
        wait_for(lambda: len(manifests(tmp_path)) >= 3)
        process.kill()
    found = manifests(tmp_path)
    for number, path in enumerate(found, start=1):
        delta = read_delta(path, read_manifest(path))
        assert (delta.number, delta.num_rows) == (number, 100_000)
        assert delta.vector is not None and (delta.vector == number).all()


@pytest.mark.thorough
def test_a_server_that_is_killed_amid_deltas_comes_back_with_whole_ones(tmp_path: Path) -> None:
    """While it applies what a directory brings; then amid a stream, which is in memory alone."""
    path, folder, port = tmp_path / "checkpoint", tmp_path / "deltas", free_port()
    made = small_checkpoint()
    checkpoint.save(path, made.model.float(), made.items)
    loaded = checkpoint.load(path)
    ids = np.concatenate([loaded.items.item_id, [77, 10**15]])
    deltas = [numbered(delta_of(loaded, ids[seed % 9 :], seed), seed + 1) for seed in range(60)]
    flags = ("--items-dir", str(folder), "--items-watch-seconds", "0.01", "--admin-port", str(port))
    folder.mkdir()

    def assert_serves(server: Served, number: int) -> None:
        answer = rank(server)
        truth = cold_scores(patched(loaded, deltas[:number]), random_events(0), REQUEST).numpy()
        assert number_of(answer) == number
        assert np.abs(np.reshape(answer.task_scores, truth.shape) - truth).max() <= BOUND

    with serving(path, *flags) as server:
        for delta in deltas[:30]:
            write_delta(folder, delta)
        wait_for(lambda: number_of(rank(server)) > 0)
        server.process.kill()
    with serving(path, *flags) as server:
        assert_serves(server, 30)
        started = iter(messages("", deltas[30]))

        def half() -> Iterator[UpdateItemsRequest]:
            message = next(started)
            message.last = False
            yield message
            server.process.kill()

        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError):
            AdminStub(channel).UpdateItems(half(), timeout=WAIT_S)
    with serving(path, *flags) as server:
        assert_serves(server, 30)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError):
            for delta in deltas[30:]:  # whole ones, which no directory has
                AdminStub(channel).UpdateItems(messages("", delta), timeout=WAIT_S)
                if delta.number == 40:
                    server.process.kill()
    with serving(path, *flags) as server:
        assert_serves(server, 30)


def manifests(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))


def rank(server: Served) -> RankResponse:
    asked = RankRequest(user_id="ann", candidates=REQUEST.candidates.tolist(), request_time_ms=REQUEST.request_time_ms)
    asked.context["surface"] = 1
    with grpc.insecure_channel(server.grpc) as channel:
        answer: RankResponse = RankingStub(channel).Rank(asked, timeout=WAIT_S)
    return answer


def number_of(answer: RankResponse) -> int:
    return int(answer.items_version.partition("-")[0] or 0)


def wait_for(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)
