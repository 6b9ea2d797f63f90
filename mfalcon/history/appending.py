"""What an append does to a history: a rule without I/O that every event log applies."""

from mfalcon.errors import HistoryMismatch
from mfalcon.history.history import History
from mfalcon.history.late_events import placed
from mfalcon.types import Append, Appended


def appended(history: History, append: Append) -> tuple[History, Appended]:
    """The history after an append, untrimmed, and what is told of it.

    Raises HistoryMismatch if the history is not the one that the caller knows, InvalidInput for a late event that is to
    be rejected.
    """
    check_expected(history, append)
    events = placed(history, append.events, append.late_events)
    after = events.after
    told = Appended(
        len(after), after.version, events.clamped, events.inserted, events.discarded, previous=history.version
    )
    return after, told


def check_expected(history: History, append: Append) -> None:
    """Raise HistoryMismatch if the history is not the one that the caller knows."""
    if append.expected_len is not None and append.expected_len != len(history):
        raise HistoryMismatch.of_len(append.expected_len, len(history), history.version)
    if append.expected_version is not None and append.expected_version != history.version:
        raise HistoryMismatch.of_version(append.expected_version, len(history), history.version)
