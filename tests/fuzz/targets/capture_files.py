"""Any bytes as a capture file, as one frame of it that is rightly checked and encrypted, or as the file of its keys.

The first byte is which.
"""

from functools import cache

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mfalcon.capture import frames
from mfalcon.capture.keys import NAME, Keys, read_keys
from mfalcon.capture.reader import ReadCounts, read_captures
from mfalcon.capture.record import Answered, Asked, CapturedRank, Counts, HistoryPart, Numbers, deflated, encode
from mfalcon.errors import DataError
from mfalcon.history.history import no_history
from mfalcon.types import CacheSource, Timings
from tests.fuzz.files import directory
from tests.server.fake_engine import MODEL
from tests.small import random_events

FILE_ID, KEY_ID, NONCE, SECRET = bytes(range(16)), b"one user's key  ", bytes(12), bytes(32)


@cache
def cipher() -> AESGCM:
    """Of the one user."""
    return AESGCM(SECRET)


def rank_frame(body: bytes) -> bytes:
    """A frame of a request, as a server writes it."""
    bound = frames.bound_to(FILE_ID, frames.RANK, KEY_ID)
    return frames.frame(frames.RANK, cipher().encrypt(NONCE, body, bound), KEY_ID, NONCE)


def rank() -> CapturedRank:
    """One request with all that it may have."""
    history = no_history("eve", b"one life").extended(random_events(40))
    events, is_deflated = deflated(history.events)
    candidates = Numbers("<u1", bytes((7, 8)))
    return CapturedRank(
        time_ms=1_800_000_000_000,
        user="0123456789abcdef",
        model=MODEL.name,
        version=MODEL.version,
        history_version=history.version,
        asked=Asked(candidates, 2, 1_800_000_000_000, random_events(1).tobytes(), {"hour": 3}),
        answered=Answered(
            2, CacheSource.HOST.name, 1, 2, Timings(1, 2, 3, 4, 10), Numbers("<u1", bytes(2)), bytes(8), bytes(16)
        ),
        history=HistoryPart(0, 40, history.version, events, deflated=is_deflated),
        counts=(Counts(None, 1, 2, Numbers("<u1", bytes(6))),),
    )


def seeds() -> list[bytes]:
    """A file with a model and a request, a body of each, and the file of one key."""
    body, model = encode(rank()), encode(MODEL)
    file = frames.head(FILE_ID, 1) + frames.frame(frames.MODEL, model) + rank_frame(body)
    key = directory("capture") / "keys"
    key.mkdir(exist_ok=True)
    keys = Keys(key)
    keys.of(bytes(16))
    keys.close()
    return [b"\0" + file, b"\1" + body, b"\2" + model, b"\3" + (key / NAME).read_bytes()]


def target(data: bytes) -> None:
    """Requests whose parts fit each other, what is counted as unfit, or DataError."""
    if not data:
        return
    kind, rest = data[0] % 4, data[1:]
    head = frames.head(FILE_ID, 1)
    good = rank_frame(encode(rank()))
    contents = (rest, head + rank_frame(rest) + good, head + frames.frame(frames.MODEL, rest) + good, rest)
    path = directory("capture") / "fuzzed"
    path.write_bytes(contents[kind])
    try:
        if kind == 3:
            read_keys(path)
            return
        for captured in read_captures([path], {KEY_ID: cipher()}, ReadCounts()):
            assert captured.scores is None or len(captured.scores) <= len(captured.request.candidates)
    except DataError:
        return
