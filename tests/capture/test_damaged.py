"""Capture files that are cut, damaged, foreign or hostile: what is whole is read, the rest is counted or refused with
its reason, and nothing that a file says makes the reader large.
"""

import asyncio
import os
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mfalcon.capture import frames
from mfalcon.capture.files import capture_files
from mfalcon.capture.keys import read_keys
from mfalcon.capture.reader import ReadCounts, find_files, find_keys, read_captures
from mfalcon.capture.record import (
    MOST_EVENTS,
    Answered,
    Asked,
    CapturedRank,
    Counts,
    HistoryPart,
    Numbers,
    encode,
)
from mfalcon.errors import DataError
from mfalcon.types import NO_TIMINGS, Append
from tests.capture.capturing import capturing, key_file, options, read_all
from tests.small import random_events, rank_request, small_checkpoint

CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id[:9].tolist()
EVENTS = random_events(60)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of two users, twelve requests, whose histories grow."""
    path = tmp_path_factory.mktemp("capture")

    async def fill() -> None:
        async with capturing(options(path), CHECKPOINT) as engine:
            for first in range(0, 60, 10):
                for user in ("ann", "bob"):
                    await engine.append_events(user, Append(EVENTS[first : first + 10], first))
                    await engine.rank(rank_request(user, ITEMS), None)

    asyncio.run(fill())
    return path


def copy(directory: Path, to: Path, content: bytes) -> Path:
    to.mkdir(exist_ok=True)
    key_file(to).write_bytes(key_file(directory).read_bytes())
    path = to / "capture-00000001.mfcap"
    path.write_bytes(content)
    return path


def content_of(directory: Path) -> bytes:
    [path] = capture_files(directory)
    return path.read_bytes()


def test_a_file_that_was_cut_anywhere_is_read_up_to_its_last_whole_frame(directory: Path, tmp_path: Path) -> None:
    content = content_of(directory)
    last = 0
    for cut in range(frames.HEAD_BYTES, len(content), 211):
        captured, counts = read_all(copy(directory, tmp_path / "c", content[:cut]))
        assert counts.skipped == counts.damage.gaps == 0 and last <= len(captured) <= 12
        last = len(captured)
    assert last >= 11


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_makes_more_than_its_own_requests_unreadable_or_any_wrong(
    directory: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever is flipped, overwritten, cut out or there twice: what is still read is equal to what was written."""
    content = bytearray(content_of(directory))
    good = {one.raw.history_version + one.user.encode(): one for one in read_all(directory)[0]}
    at = data.draw(st.integers(frames.HEAD_BYTES, len(content) - 1))
    size = data.draw(st.integers(1, 300))
    kind = data.draw(st.sampled_from(("flip", "noise", "cut", "twice")))
    match kind:
        case "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        case "noise":
            content[at : at + size] = data.draw(st.binary(min_size=size, max_size=size))
        case "cut":
            del content[at : at + size]
        case _:
            content[at:at] = content[at : at + size]
    captured, _ = read_all(copy(directory, tmp_path / "c", bytes(content)))
    for one in captured:
        written = good[one.raw.history_version + one.user.encode()]
        assert one.raw == written.raw and one.history.events.tobytes() == written.history.events.tobytes()
    if kind == "flip":  # of one frame: of its user the rest may be lost, whose histories grew out of it
        assert len(captured) >= 6


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2_000))
@example(b"")
@example(b"MFALCAPT")
@example(b"MFALCAPT" + b"\xff" * 100)
def test_whatever_is_no_capture_is_refused_with_its_name(directory: Path, tmp_path: Path, content: bytes) -> None:
    path = copy(directory, tmp_path / "c", content)
    with pytest.raises(DataError, match=r"capture-00000001\.mfcap: (it is no capture file|the head)"):
        list(read_captures([path], find_keys([path]), ReadCounts()))


def test_another_format_and_a_foreign_file_among_others_are_named(directory: Path, tmp_path: Path) -> None:
    newer = bytearray(content_of(directory))
    newer[8] = 9
    newer[frames.HEAD_BYTES - 4 : frames.HEAD_BYTES] = zlib.crc32(newer[: frames.HEAD_BYTES - 4]).to_bytes(4, "little")
    path = copy(directory, tmp_path / "c", bytes(newer))
    with pytest.raises(DataError, match="got a capture file of format 9, must be 1"):
        read_all(path)
    counts = ReadCounts()
    files = [path, *find_files([directory])]
    assert len(list(read_captures(files, find_keys(files), counts))) == 12
    assert counts.refused == [f"{path}: got a capture file of format 9, must be 1"]


def test_places_without_captures_or_keys_are_refused(directory: Path, tmp_path: Path) -> None:
    for wrong, why in ((tmp_path, "no capture files in it"), (tmp_path / "x", "no such file or directory")):
        with pytest.raises(DataError, match=why):
            find_files([wrong])
    path = copy(directory, tmp_path / "c", content_of(directory))
    key_file(path.parent).unlink()
    with pytest.raises(DataError, match="keys: cannot be read: No such file"):
        find_keys([path])
    assert len(read_all(path, keys=key_file(directory))[0]) == 12
    key_file(path.parent).write_bytes(b"\0" * 4_000)
    with pytest.raises(DataError, match="it is no file of capture keys"):
        find_keys([path])


def test_a_frame_of_another_file_or_user_is_not_believed(directory: Path, tmp_path: Path) -> None:
    content = content_of(directory)
    other = bytearray(content)
    other[16:32] = os.urandom(16)  # the id of the file
    other[frames.HEAD_BYTES - 4 : frames.HEAD_BYTES] = zlib.crc32(other[: frames.HEAD_BYTES - 4]).to_bytes(4, "little")
    captured, counts = read_all(copy(directory, tmp_path / "c", bytes(other)))
    assert captured == [] and counts.forged == 12
    ids = list(read_keys(key_file(directory)))
    damage, swapped = frames.Damage(), [content[: frames.HEAD_BYTES]]
    with capture_files(directory)[0].open("rb") as file:
        for frame in frames.frames(frames.Content(file.fileno()), damage):
            key_id = {ids[0]: ids[1], ids[1]: ids[0]}.get(frame.key_id, frame.key_id)
            swapped.append(frames.frame(frame.kind, frame.body, key_id, frame.nonce))
    captured, counts = read_all(copy(directory, tmp_path / "c", b"".join(swapped)))
    assert captured == [] and counts.forged == 12


def hostile_file(directory: Path, to: Path, *plains: bytes) -> Path:
    """A file of somebody who has the keys too."""
    content = frames.head(file_id := os.urandom(16), 0)
    key_id, cipher = next(iter(read_keys(key_file(directory)).items()))
    assert isinstance(cipher, AESGCM)
    for plain in plains:
        nonce = os.urandom(12)
        body = cipher.encrypt(nonce, plain, frames.bound_to(file_id, frames.RANK, key_id))
        content += frames.frame(frames.RANK, body, key_id, nonce)
    return copy(directory, to, content)


def rank_of(**changed: object) -> bytes:
    fields: dict[str, object] = {
        "time_ms": 1,
        "user": "u",
        "model": "m",
        "version": "v",
        "history_version": b"h",
        "asked": Asked(Numbers.of(np.arange(3)), 0, 1),
        "answered": Answered(3, "none", 0, 0, NO_TIMINGS, Numbers.of(np.arange(0)), np.ones(3, np.float32).tobytes()),
        "history": HistoryPart(0, 0, b"h", b""),
    }
    return encode(CapturedRank(**(fields | changed)))  # type: ignore[arg-type]


BOMB = zlib.compress(bytes(200 << 20), 9)


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"\xc1",
        b"\x80",
        encode({"time_ms": "x"}),
        rank_of(history=HistoryPart(0, 10, b"h", BOMB, deflated=True)),
        rank_of(history=HistoryPart(0, MOST_EVENTS + 1, b"h", BOMB, deflated=True)),
        rank_of(history=HistoryPart(0, 2**62, b"h", b"", deflated=True)),
        rank_of(history=HistoryPart(5, 3, b"h", b"")),
        rank_of(history=HistoryPart(0, 2, b"h", b"\0" * 47)),
        rank_of(history=HistoryPart(0, 3, b"h", random_events(3)[::-1].tobytes())),
        rank_of(history=HistoryPart(0, 1, b"h", b"\xff" * 24)),
        rank_of(history=HistoryPart(0, 1, b"h", zlib.compress(b"x")[:5], deflated=True)),
        rank_of(asked=Asked(Numbers("<i4", b"\0" * 3), 0, 1)),
        rank_of(asked=Asked(Numbers.of(np.arange(0)), 0, 1)),
        rank_of(asked=Asked(Numbers.of(np.arange(3)), -1, 1)),
        rank_of(asked=Asked(Numbers.of(np.arange(3)), 0, 2**62)),
        rank_of(asked=Asked(Numbers.of(np.arange(3)), 0, 1, b"\0" * 25)),
        rank_of(asked=Asked(Numbers.of(np.arange(3)), 0, 1, dense_names=("a",), dense=b"\0" * 8)),
        rank_of(asked=Asked(Numbers.of(np.arange(3)), 0, 1, dense_names=("a",), dense=b"\xff" * 12)),
        rank_of(answered=Answered(2, "none", 0, 0, NO_TIMINGS, Numbers.of(np.arange(0)), b"\0" * 12)),
        rank_of(answered=Answered(9, "none", 0, 0, NO_TIMINGS, Numbers.of(np.arange(0)), b"\0" * 36)),
        rank_of(answered=Answered(0, "none", 0, 0, NO_TIMINGS, Numbers.of(np.arange(0)), b"\0" * 4)),
        rank_of(counts=(Counts(4.0, 0, 1, Numbers.of(np.arange(4))),)),
    ],
)
def test_what_no_server_has_written_is_passed_over_and_stays_small(
    directory: Path, tmp_path: Path, plain: bytes
) -> None:
    path = hostile_file(directory, tmp_path / "c", plain, rank_of())
    tracemalloc.start()
    captured, counts = read_all(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(captured) == 1 and counts.unfit == 1 and counts.read == 1
    assert peak < 8 << 20


def test_a_history_that_grows_out_of_another_one_is_not_known(directory: Path, tmp_path: Path) -> None:
    grown = HistoryPart(0, 4, b"h", random_events(1).tobytes(), keep=3, since=b"unknown")
    captured, counts = read_all(hostile_file(directory, tmp_path / "c", rank_of(history=grown), rank_of(history=None)))
    assert captured == [] and counts.no_history == 2


def test_a_size_that_no_frame_has_is_no_frame(directory: Path, tmp_path: Path) -> None:
    huge = frames.frame(frames.RANK, b"x")
    facts = bytearray(huge[: frames.FRAME_BYTES - 4])
    facts[4:8] = (2**32 - 1).to_bytes(4, "little")
    huge = bytes(facts) + zlib.crc32(facts).to_bytes(4, "little") + b"x"
    content = content_of(directory)
    captured, counts = read_all(copy(directory, tmp_path / "c", content + huge + content[frames.HEAD_BYTES :]))
    assert counts.damage.gaps == 1 and len(captured) == 24


async def test_a_server_goes_on_beside_files_that_are_damaged(directory: Path, tmp_path: Path) -> None:
    copy(directory, tmp_path, b"garbage")
    async with capturing(options(tmp_path), CHECKPOINT) as engine:
        await engine.rank(rank_request("cid", ITEMS), None)
    assert [path.name for path in capture_files(tmp_path)] == ["capture-00000001.mfcap", "capture-00000002.mfcap"]
    captured, counts = read_all(tmp_path)
    assert len(captured) == 1 and len(counts.refused) == 1
