"""What an append does to a history: a rule without I/O that every event log applies."""

from mfalcon.errors import HistoryMismatch
from mfalcon.history.history import History, check_order
from mfalcon.types import Append, Appended


def appended(history: History, append: Append) -> tuple[History, Appended]:
    """The history after an append, untrimmed, and what is told of it.

    Raises HistoryMismatch if the history is not the one that the caller knows, InvalidInput if time runs back.
    """
    check_expected(history, append)
    check_order(history, append.events, "events")
    after = history.extended(append.events)
    return after, Appended(len(after), after.version)


def check_expected(history: History, append: Append) -> None:
    """Raise HistoryMismatch if the history is not the one that the caller knows."""
    if append.expected_len is not None and append.expected_len != len(history):
        raise HistoryMismatch.of_len(append.expected_len, len(history), history.version)
    if append.expected_version is not None and append.expected_version != history.version:
        raise HistoryMismatch.of_version(append.expected_version, len(history), history.version)
