"""What a server captures: all that it answers for users in the sample, with the history as it was, until the user is
deleted; and never at the cost of a request.
"""

import asyncio
import errno
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mfalcon.capture.capture import Capture
from mfalcon.capture.files import FileLimits, capture_files
from mfalcon.engine.histories import HistoryOptions
from mfalcon.errors import ConfigError, StorageUnavailable
from mfalcon.history.budget import LogBudget
from mfalcon.history.chain import user_hash
from mfalcon.metrics.captures import CaptureMetrics
from mfalcon.metrics.server_metrics import Registry
from mfalcon.types import Append, RankResult
from tests.capture.capturing import capturing, counted, key_file, options, read_all, tag, until_written
from tests.small import random_events, rank_request, small_checkpoint

CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id[:9].tolist()
EVENTS = random_events(60)
RECENT = random_events(2, 3, int(EVENTS["time_ms"][-1]))


async def test_a_capture_holds_each_request_with_its_history_and_answer(tmp_path: Path) -> None:
    answers = list[RankResult]()
    async with capturing(options(tmp_path / "c"), CHECKPOINT) as engine:
        for first, last in ((0, 5), (5, 40), (40, 41), (41, 60)):
            await engine.append_events("ann", Append(EVENTS[first:last], first))
            answers.append(await engine.rank(rank_request("ann", ITEMS, top_k=3), None))
        answers.append(await engine.rank(rank_request("ann", ITEMS[::-1], recent=RECENT), None))
        answers.append(await engine.rank(rank_request("bob", ITEMS), None))
        await until_written(engine, 6)
    captured, counts = read_all(tmp_path / "c")
    assert (counts.read, counts.skipped, counts.files) == (6, 0, 1)
    lengths = [5, 40, 41, 60, 60, 0]
    for one, answer, length in zip(captured, answers, lengths, strict=True):
        assert one.scores is not None and one.task_scores is not None and one.info is not None
        assert one.scores.tobytes() == answer.scores.tobytes()
        assert one.task_scores.tobytes() == answer.task_scores.tobytes()
        assert one.raw.asked.top_k == one.request.top_k and one.raw.version == answer.model_version
        assert one.raw.answered.top.ids().tolist() == answer.top.tolist()
        assert len(one.history) == length and one.history.version == answer.history_version
        assert one.history.events.tobytes() == EVENTS[:length].tobytes()
        assert one.info.tasks == answer.tasks
    assert captured[4].request.recent_events.tobytes() == RECENT.tobytes()
    assert captured[4].request.candidates.tolist() == ITEMS[::-1]
    assert [one.raw.user for one in captured] == [tag("ann")] * 5 + [tag("bob")]
    assert len({one.user for one in captured}) == 2
    written = b"".join(path.read_bytes() for path in [*capture_files(tmp_path / "c"), key_file(tmp_path / "c")])
    assert b"ann" not in written and tag("ann").encode() not in written


async def test_histories_that_change_in_the_middle_or_are_cut_are_held_as_they_were(tmp_path: Path) -> None:
    late = random_events(3, 7, int(EVENTS["time_ms"][20]))
    histories = HistoryOptions(log_max_events=32, log_slack=8)
    checkpoint = small_checkpoint()
    versions = list[bytes]()
    async with capturing(options(tmp_path), checkpoint, histories=histories) as engine:
        for events in (EVENTS[:30], late, EVENTS[30:50], EVENTS[50:], random_events(40, 5, int(EVENTS["time_ms"][-1]))):
            await engine.append_events("ann", Append(events, late_events="insert"))
            versions.append((await engine.rank(rank_request("ann", ITEMS), None)).history_version)
    captured, _ = read_all(tmp_path)
    assert [one.history.version for one in captured] == versions
    assert [len(one.history) for one in captured] == [30, 33, 53, 63, 103]
    bases = [one.history.base for one in captured]
    assert bases[0] == 0 and bases == sorted(bases) and bases[-1] > 0
    middle = captured[1].history.events
    assert np.all(np.diff(middle["time_ms"]) >= 0) and np.isin(late["time_ms"], middle["time_ms"]).all()


async def test_a_deleted_user_is_unreadable_at_once_and_after_a_restart(tmp_path: Path) -> None:
    async with capturing(options(tmp_path), CHECKPOINT) as engine:
        for user in ("ann", "bob"):
            await engine.append_events(user, Append(EVENTS))
            await engine.rank(rank_request(user, ITEMS), None)
        await until_written(engine, 2)
        stolen = key_file(tmp_path).read_bytes()
        await engine.delete_user("ann")
        captured, counts = read_all(tmp_path)
        assert [one.raw.user for one in captured] == [tag("bob")] and counts.locked == 1
        assert counted(engine.metrics, "mfalcon_capture_deleted_users_total") == 1
        kept = key_file(tmp_path).read_bytes()
        assert len(kept) == len(stolen) and user_hash("ann") in stolen and user_hash("ann") not in kept
        await engine.rank(rank_request("ann", ITEMS), None)  # he is back, and has a life of his own
        await until_written(engine, 3)
    async with capturing(options(tmp_path, sample=0.0), CHECKPOINT) as engine:
        captured, counts = read_all(tmp_path)
        assert [one.raw.user for one in captured] == [tag("bob"), tag("ann")] and counts.locked == 1
        await engine.delete_user("ann")
        await engine.delete_user("bob")
        assert read_all(tmp_path)[0] == [] and read_all(tmp_path)[1].locked == 3


async def test_what_was_under_way_when_its_user_was_deleted_is_not_captured(tmp_path: Path) -> None:
    """Also of a user without a history, whose log has no life that could end."""
    async with capturing(options(tmp_path), CHECKPOINT) as engine:
        for user in ("ann", "bob"):
            ranks = [asyncio.create_task(engine.rank(rank_request(user, ITEMS), None)) for _ in range(20)]
            await asyncio.sleep(0)
            await engine.delete_user(user)
            await asyncio.gather(*ranks)
        await engine.rank(rank_request("cid", ITEMS), None)
        await until_written(engine, 1)
    captured, _ = read_all(tmp_path)
    assert [one.raw.user for one in captured] == [tag("cid")]


async def test_whom_the_log_evicts_is_unreadable_too(tmp_path: Path) -> None:
    histories = HistoryOptions(budget=LogBudget(max_users=1, when_full="evict"))
    async with capturing(options(tmp_path), CHECKPOINT, histories=histories) as engine:
        for number, user in enumerate(("ann", "bob"), 1):
            await engine.append_events(user, Append(EVENTS))
            await engine.rank(rank_request(user, ITEMS), None)
            await until_written(engine, number)
        async with asyncio.timeout(60):
            while not counted(engine.metrics, "mfalcon_capture_deleted_users_total"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert {one.raw.user for one in read_all(tmp_path)[0]} == {tag("bob")}


async def test_the_sample_is_of_users_and_the_same_ones_always(tmp_path: Path) -> None:
    users, share = [f"user {i}" for i in range(400)], 0.3
    chosen = []
    for run in ("a", "b"):
        capture = Capture(options(tmp_path / run, sample=share), CaptureMetrics(Registry()))
        chosen.append([user for user in users if capture.begin(user_hash(user)) is not None])
        await capture.close()
    assert chosen[0] == chosen[1] and 80 < len(chosen[0]) < 160
    capture = Capture(options(tmp_path / "none", sample=0.0), CaptureMetrics(Registry()))
    assert all(capture.begin(user_hash(user)) is None for user in users)
    await capture.close()


async def test_without_scores_requests_and_histories_are_captured_all_the_same(tmp_path: Path) -> None:
    async with capturing(options(tmp_path, scores=False), CHECKPOINT) as engine:
        await engine.append_events("ann", Append(EVENTS))
        await engine.rank(rank_request("ann", ITEMS), None)
    [captured], _ = read_all(tmp_path)
    assert captured.scores is None and captured.task_scores is None and len(captured.history) == 60


async def test_files_end_at_their_size_and_the_oldest_go_with_their_keys(tmp_path: Path) -> None:
    limits = FileLimits(budget_bytes=30_000, file_bytes=10_000, max_age_s=86_400.0)
    async with capturing(options(tmp_path, limits=limits), CHECKPOINT) as engine:
        for number in range(40):
            await engine.append_events(f"user {number}", Append(EVENTS))
            for _ in range(2):
                await engine.rank(rank_request(f"user {number}", ITEMS), None)
        await until_written(engine, 80)
    files = capture_files(tmp_path)
    assert 2 <= len(files) <= 4 and files[-1].name > "capture-00000004"
    assert sum(path.stat().st_size for path in files) <= limits.budget_bytes + 5_000
    captured, counts = read_all(tmp_path)
    assert counts.skipped == 0 and 10 < counts.read < 80
    assert captured[-1].raw.user == tag("user 39")
    num_keys = sum(1 for _ in range(0, key_file(tmp_path).stat().st_size, 80)) - 1
    assert num_keys < 39  # slots of keys that no file needs are used again
    for path in files:  # each can be read alone
        alone, counts = read_all(path)
        assert alone and counts.skipped == 0


async def test_old_files_go_for_their_age(tmp_path: Path) -> None:
    async with capturing(options(tmp_path), CHECKPOINT) as engine:
        await engine.rank(rank_request("ann", ITEMS), None)
    [old] = capture_files(tmp_path)
    os.utime(old, (1, 1))
    async with capturing(options(tmp_path), CHECKPOINT) as engine:
        await engine.rank(rank_request("bob", ITEMS), None)
        await until_written(engine, 1)
    [new] = capture_files(tmp_path)
    assert new != old and [one.raw.user for one in read_all(new)[0]] == [tag("bob")]


async def test_nobody_else_may_read_or_write_there(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir(mode=0o755)
    async with capturing(options(tmp_path / "c"), CHECKPOINT) as engine:
        await engine.rank(rank_request("ann", ITEMS), None)
        with pytest.raises(ConfigError, match=r"capture_dir: .* is in use by process \d+, must be that of one server"):
            Capture(options(tmp_path / "c"), CaptureMetrics(Registry()))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "c").iterdir()}
    assert set(modes.values()) == {0o600} and len(modes) == 3
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700


def test_a_directory_of_others_is_not_taken_from_them(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "theirs").touch()
    with pytest.raises(ConfigError, match=r"capture_dir: .*shared has mode 1777 and holds other files \('theirs'\)"):
        Capture(options(shared), CaptureMetrics(Registry()))
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777 and os.listdir(shared) == ["theirs"]
    Capture(options(shared / "ours"), CaptureMetrics(Registry()))
    assert stat.S_IMODE((shared / "ours").stat().st_mode) == 0o700


def test_a_directory_of_another_user_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o2777)  # as Kubernetes mounts one
    monkeypatch.setattr(os, "chmod", refuses)
    with pytest.raises(ConfigError, match="must be this user's: name a directory in it, which the server makes"):
        Capture(options(volume), CaptureMetrics(Registry()))


def test_a_directory_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"capture_dir: .*file cannot be used"):
        Capture(options(tmp_path / "file"), CaptureMetrics(Registry()))
    (tmp_path / "d").mkdir()
    key_file(tmp_path / "d").write_bytes(b"something else, and more of it than a slot has, for certain" * 3)
    with pytest.raises(ConfigError, match=r"capture_dir: .*it is no file of capture keys"):
        Capture(options(tmp_path / "d"), CaptureMetrics(Registry()))


def is_capture(file: int) -> bool:
    return os.readlink(f"/proc/self/fd/{file}").endswith(".mfcap")


class FullDisk:
    """Takes writes to capture files while `room` lasts, and of the last one a part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: float = float("inf")
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, file: int, content: bytes) -> int:
        if not is_capture(file):
            return self._write(file, content)
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        num = int(min(len(content), self.room))
        self.room -= num
        return self._write(file, content[:num])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


async def test_a_full_disk_costs_captures_and_no_request(
    tmp_path: Path, disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mfalcon.capture.capture._RETRY_S", 0.0)
    async with capturing(options(tmp_path), CHECKPOINT) as engine:
        await engine.append_events("ann", Append(EVENTS))
        for _ in range(3):
            await engine.rank(rank_request("ann", ITEMS), None)
        await until_written(engine, 3)
        disk.room = 100  # less than a frame
        for _ in range(3):
            await engine.rank(rank_request("ann", ITEMS), None)
        async with asyncio.timeout(60):
            while counted(engine.metrics, "mfalcon_capture_dropped_total", reason="disk") < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        disk.room = float("inf")
        await engine.rank(rank_request("ann", ITEMS), None)
        await until_written(engine, 4)
    captured, counts = read_all(tmp_path)
    assert counts.read == 4 and counts.skipped == 0 and counts.damage.cut_bytes == 0
    assert counts.files == 2 and not counts.refused
    assert all(len(one.history) == 60 for one in captured)


async def test_a_disk_that_hangs_costs_captures_and_no_request_and_delays_deletions_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on, write = threading.Event(), threading.Event(), os.write

    def slow(file: int, content: bytes) -> int:
        if is_capture(file):
            hangs.set()
            goes_on.wait(600)
        return write(file, content)

    monkeypatch.setattr(os, "write", slow)
    async with capturing(options(tmp_path, queue_bytes=20_000), CHECKPOINT) as engine:
        await engine.rank(rank_request("ann", ITEMS), None)
        assert await asyncio.to_thread(hangs.wait, 60)
        for _ in range(50):
            await asyncio.wait_for(engine.rank(rank_request("ann", ITEMS), None), 60)
        assert counted(engine.metrics, "mfalcon_capture_dropped_total", reason="queue") > 0
        assert counted(engine.metrics, "mfalcon_captured_total") == 0
        with pytest.raises(StorageUnavailable, match="captured requests has not answered") as error:
            await engine.delete_user("ann", time.monotonic() + 0.2)
        assert error.value.may_be_done
        goes_on.set()
        await engine.delete_user("ann")
    assert read_all(tmp_path)[0] == []


async def test_a_key_that_the_disk_does_not_overwrite_is_no_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with capturing(options(tmp_path), CHECKPOINT) as engine:
        await engine.rank(rank_request("ann", ITEMS), None)
        await until_written(engine, 1)

        def refuse(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as broken:
            broken.setattr(os, "fdatasync", refuse)
            with pytest.raises(StorageUnavailable, match="captured requests: Input/output error: ask again"):
                await engine.delete_user("ann")
        await engine.delete_user("ann")
    assert read_all(tmp_path)[1].locked == 1
