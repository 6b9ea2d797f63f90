"""Any bytes as what a log keeps of an append that bore an id."""

import numpy as np

from mfalcon.errors import DamagedLog, InvalidInput
from mfalcon.history.append_ids import Record
from mfalcon.types import Append, Appended
from tests.small import random_events

APPEND = Append(random_events(9), append_id="once")


def seeds() -> list[bytes]:
    """Of appends without late events, and with."""
    told = Appended(9, bytes(16), clamped=(1, 2), inserted=(3,), discarded=(8,))
    return [Record.of(APPEND, Appended(9, bytes(16))).pack(), Record.of(APPEND, told).pack()]


def target(data: bytes) -> None:
    """What the first append was told, or a refusal; the digest is right every second time."""
    raw = bytes(Record.of(APPEND, Appended(9, bytes(16))).pack()[:8]) + data[8:] if len(data) % 2 else data
    try:
        told = Record.unpack(raw).told_again(APPEND)
    except (DamagedLog, InvalidInput):
        return
    assert all(0 <= at < len(APPEND.events) for at in (*told.clamped, *told.inserted, *told.discarded))
    assert np.isfinite(told.history_len)
