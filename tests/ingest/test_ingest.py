"""Every event of a stream is written once, whatever is killed, refused or out of reach in between."""

import asyncio
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from mfalcon.errors import CallFailed, ConfigError, DamagedLog, DataError, Overloaded, StorageUnavailable
from mfalcon.ingest import progress as progress_file
from mfalcon.ingest.lines import LineReader
from mfalcon.ingest.progress import Progress, alone
from mfalcon.ingest.rejects import LeftOut, opened_rejects
from mfalcon.ingest.run import IngestOptions, ingest
from mfalcon.ingest.sender import Pace, Sender
from mfalcon.ingest.stream import MAX_LINE_BYTES, LineStream
from mfalcon.types import Append, Appended
from mfalcon_client import AsyncClient, Retry
from tests.full_disk import largest_file
from tests.server.fake_engine import FakeEngine
from tests.server.harness import Served, serving_engine

NAME = "clicks"
ACTIONS = {f"rating_{n}": n - 1 for n in range(1, 6)}


class Log(FakeEngine):
    """Fails some appends, before or after they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)
        self.failing = 0.0
        self.damaged: set[str] = set()
        self.num_asked = 0

    async def append_events(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """See FakeEngine."""
        self.num_asked += 1
        if user_id in self.damaged:
            raise DamagedLog("hash")
        if self.random.random() < self.failing:
            raise Overloaded("full", retry_after_s=0.01)
        told = await super().append_events(user_id, append, deadline)
        if self.random.random() < self.failing:
            raise StorageUnavailable("the answer was lost", may_be_done=True)
        return told

    def written(self) -> dict[str, list[int]]:
        """What is in the histories: item ids, which name the events."""
        return {user: events["item_id"].tolist() for user, events in self.histories.items()}


@pytest.fixture
async def served() -> AsyncIterator[Served[Log]]:
    async with serving_engine(Log()) as running:
        yield running


def write_events(path: Path, num: int, num_users: int = 7) -> dict[str, list[int]]:
    """Events of which each is named by its item id; those of each user."""
    expected: dict[str, list[int]] = {}
    lines = []
    for number in range(num):
        user = f"u{(number * number) % num_users}"
        expected.setdefault(user, []).append(number)
        lines.append(orjson.dumps({"user_id": user, "item_id": number, "time_ms": 1_000 + number}))
    path.write_bytes(b"\n".join(lines) + b"\n")
    return expected


async def send(served: Served[Log], path: Path, options: IngestOptions, **pace: Any) -> tuple[Progress, Sender]:
    async with AsyncClient(served.addresses.grpc, timeout_s=10.0, retry=Retry(attempts=1)) as client:
        sender = Sender(client, Pace(**pace))
        with path.open("rb") as file:
            stream = LineStream(file, NAME, LineReader(ACTIONS), leaves_out=options.rejects is not None)
            return await ingest(stream, NAME, sender, options), sender


async def test_events_come_in_their_order_whatever_the_sizes(served: Served[Log], tmp_path: Path) -> None:
    expected = write_events(tmp_path / "events", 500)
    options = IngestOptions(window_events=190, most_events=11)
    done, _ = await send(served, tmp_path / "events", options, num_appends=3, num_events=20)
    assert served.engine.written() == expected
    assert (done.num_events, done.num_rejected, done.acknowledged) == (500, 0, (tmp_path / "events").stat().st_size)


async def test_lost_answers_and_refusals_write_nothing_twice(served: Served[Log], tmp_path: Path) -> None:
    expected = write_events(tmp_path / "events", 150)
    served.engine.failing = 0.2
    _, sender = await send(served, tmp_path / "events", IngestOptions(window_events=75, most_events=15))
    assert served.engine.written() == expected
    assert sender.num_found > 0


async def test_a_stream_that_grows_goes_on_where_it_was(served: Served[Log], tmp_path: Path) -> None:
    options = IngestOptions(window_events=30, progress=tmp_path / "progress")
    for num in (0, 70, 70, 200):
        expected = write_events(tmp_path / "events", num)
        done, _ = await send(served, tmp_path / "events", options)
        assert served.engine.written() == expected
        assert done.num_events == num
    asked = served.engine.num_asked
    await send(served, tmp_path / "events", options)
    assert served.engine.num_asked == asked


async def test_a_window_that_was_on_its_way_is_sent_again_as_it_was(served: Served[Log], tmp_path: Path) -> None:
    """Half of it was written when all died; since then the stream has grown."""
    options = IngestOptions(window_events=1_000, progress=tmp_path / "progress", most_events=4)
    write_events(tmp_path / "events", 100)
    served.engine.damaged = {"u4"}
    with pytest.raises(DataError, match=r"clicks:3: DATA_LOSS.*--rejects FILE"):
        await send(served, tmp_path / "events", options)
    before = served.engine.written()
    assert before and "u4" not in before
    assert progress_file.read(tmp_path / "progress", NAME).sending > 0
    served.engine.damaged = set()
    expected = write_events(tmp_path / "events", 150)
    _, sender = await send(served, tmp_path / "events", options)
    assert served.engine.written() == expected
    assert sender.num_found == sum(map(len, before.values()))


async def test_a_disk_that_is_full_loses_nothing_and_writes_nothing_twice(
    served: Served[Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is noticed: before a window, behind it, and at what is left out."""
    expected = write_events(tmp_path / "events", 40)
    with (tmp_path / "events").open("ab") as file:
        file.write(b"nonsense\n")
    options = IngestOptions(window_events=15, progress=tmp_path / "progress", rejects=tmp_path / "rejects")
    flush, told = os.fsync, list[str]()

    def full(descriptor: int) -> None:
        if len(told) < 12 and random.random() < 0.4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    random = np.random.default_rng(0)
    monkeypatch.setattr(os, "fsync", full)
    while True:
        try:
            done, _ = await send(served, tmp_path / "events", options)
            break
        except DataError as error:
            told.append(str(error))
            assert str(error).endswith("No space left on device; mend that and run it again: nothing is lost")
            assert not (tmp_path / "progress.new").exists()
    assert {words.split(":")[0] for words in told} == {"--progress", "--rejects"}
    assert served.engine.written() == expected
    assert (done.num_events, done.num_rejected) == (40, 1)
    assert [orjson.loads(line)["text"] for line in (tmp_path / "rejects").read_bytes().splitlines()] == ["nonsense"]


@pytest.mark.parametrize("size", [None, 7])
def test_half_a_line_is_taken_back(tmp_path: Path, size: int | None) -> None:
    path = tmp_path / "rejects"
    path.write_bytes(b"before\n")
    with opened_rejects(path, size) as rejects:
        with largest_file(4096), pytest.raises(DataError, match=f"--rejects: cannot write {path}: File too large; "):
            rejects.add([LeftOut(1, b"x" * 5_000, "long")])
        assert path.read_bytes() == b"before\n"
        assert rejects.add([LeftOut(2, b"y", "short")]) == path.stat().st_size
    assert [orjson.loads(line)["place"] for line in path.read_bytes().splitlines()[1:]] == [2]


async def test_lines_that_cannot_be_taken_are_left_out_and_told(served: Served[Log], tmp_path: Path) -> None:
    """Those that are no event, those that the server refuses, and those of a user whose log is damaged; the events
    beside them in the same append are written.
    """
    expected = write_events(tmp_path / "events", 60)
    lines = (tmp_path / "events").read_bytes().splitlines()
    lines[10:10] = [b"", b"nonsense \xff", orjson.dumps({"user_id": "u1", "item_id": 1, "time_ms": 3 * 10**13})]
    (tmp_path / "events").write_bytes(b"\r\n".join(lines))
    served.engine.damaged = {"u2"}
    del expected["u2"]
    options = IngestOptions(window_events=25, progress=tmp_path / "progress", rejects=tmp_path / "rejects")
    done, _ = await send(served, tmp_path / "events", options)
    assert served.engine.written() == expected
    rejects = [orjson.loads(line) for line in (tmp_path / "rejects").read_bytes().splitlines()]
    assert [reject["place"] for reject in rejects] == sorted(reject["place"] for reject in rejects)
    told = {reject["place"]: reject for reject in rejects}
    assert told[12]["error"].startswith("line: got") and told[12]["text"].startswith("nonsense")
    assert "time_ms" in told[13]["error"]
    damaged = [reject for reject in rejects if reject["error"].startswith("DATA_LOSS")]
    assert len(rejects) == 2 + len(damaged) == done.num_rejected
    assert {orjson.loads(reject["text"])["user_id"] for reject in damaged} == {"u2"}
    assert done.num_events == sum(map(len, expected.values()))


async def test_rejects_of_a_window_that_was_not_acknowledged_are_told_once(served: Served[Log], tmp_path: Path) -> None:
    write_events(tmp_path / "events", 5)
    with (tmp_path / "events").open("ab") as file:
        file.write(b"bad\n" * 3)
    options = IngestOptions(progress=tmp_path / "progress", rejects=tmp_path / "rejects")
    size = (tmp_path / "events").stat().st_size
    (tmp_path / "rejects").write_bytes(b"of a window that was on its way\n")
    progress_file.write(tmp_path / "progress", Progress(NAME, sending=size))
    done, _ = await send(served, tmp_path / "events", options)
    assert [orjson.loads(line)["place"] for line in (tmp_path / "rejects").read_bytes().splitlines()] == [6, 7, 8]
    assert done.rejects_bytes == (tmp_path / "rejects").stat().st_size


async def test_the_first_bad_line_ends_a_stream_that_leaves_nothing_out(served: Served[Log], tmp_path: Path) -> None:
    """All before it is acknowledged, and what comes behind it once it is mended."""
    expected = write_events(tmp_path / "events", 50)
    good = (tmp_path / "events").read_bytes()
    lines = good.splitlines(keepends=True)
    (tmp_path / "events").write_bytes(b"".join([*lines[:33], b"{}\n", *lines[34:]]))
    options = IngestOptions(window_events=10, progress=tmp_path / "progress")
    with pytest.raises(DataError, match="clicks:34: user_id: got None"):
        await send(served, tmp_path / "events", options)
    assert sum(map(len, served.engine.written().values())) == 33
    (tmp_path / "events").write_bytes(good)
    await send(served, tmp_path / "events", options)
    assert served.engine.written() == expected


async def test_another_stream_under_the_same_name_is_refused(served: Served[Log], tmp_path: Path) -> None:
    options = IngestOptions(progress=tmp_path / "progress")
    write_events(tmp_path / "events", 50)
    await send(served, tmp_path / "events", options)
    for other in (b"x" * 10_000, (tmp_path / "events").read_bytes()[:-2], b"\n" + (tmp_path / "events").read_bytes()):
        (tmp_path / "other").write_bytes(other)
        with pytest.raises(DataError, match="is not the stream of which"):
            await send(served, tmp_path / "other", options)
    (tmp_path / "progress").write_text('{"format":1,"name":"orders"}')
    with pytest.raises(DataError, match="is of the stream 'orders', not of 'clicks'"):
        await send(served, tmp_path / "events", options)
    for damaged in ("", "{", "7", '{"format":2}', '{"format":1,"name":"clicks","acknowledged":-1}'):
        (tmp_path / "progress").write_text(damaged)
        with pytest.raises(DataError, match="is no file of `mfalcon ingest`"):
            await send(served, tmp_path / "events", options)


async def test_a_line_without_an_end_is_refused(served: Served[Log], tmp_path: Path) -> None:
    (tmp_path / "events").write_bytes(b" " * (MAX_LINE_BYTES + 1))
    with pytest.raises(DataError, match=r"clicks:1: a line must have at most 1,048,576 bytes"):
        await send(served, tmp_path / "events", IngestOptions())


async def test_who_finds_no_server_gives_up(tmp_path: Path) -> None:
    write_events(tmp_path / "events", 5)
    async with serving_engine(Log()) as running:
        pass
    with pytest.raises(CallFailed, match="UNAVAILABLE"):
        await send(running, tmp_path / "events", IngestOptions(), patience_s=0.0)


def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "progress"),
        pytest.raises(ConfigError, match="another process"),
        alone(tmp_path / "progress"),
    ):
        pass


async def test_a_process_that_is_killed_again_and_again_writes_each_event_once(
    served: Served[Log], tmp_path: Path
) -> None:
    expected = write_events(tmp_path / "events", 20_000, num_users=997)
    command = [sys.executable, "-m", "mfalcon.cli", "ingest", str(tmp_path / "events"), "--name", NAME]
    command += ["--target", served.addresses.grpc, "--progress", str(tmp_path / "progress"), "--window", "1000"]
    for asked in (700, 1_500, 2_000, None):
        process = await asyncio.create_subprocess_exec(*command)
        ended = asyncio.create_task(process.wait())
        begun = served.engine.num_asked
        while asked is not None and served.engine.num_asked < begun + asked and not ended.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        if asked is not None:
            process.kill()
        assert await ended == (0 if asked is None else -signal.SIGKILL)
    assert served.engine.written() == expected
