"""Writes whose outcome must be known: an append or a delete is repeated until the servers say what became of it.

An append that ended without an answer may have been written or not, or may yet be. With one writer per user,
`expected_len` tells: a repetition succeeds (the first was not written, and cannot be any more), or is refused with the
length that the history has if the first was written. Any other length is an event lost or one too many. Attempts that
race for the same `expected_len` are told apart in the same way: one at most may win.
"""

import re
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from mfalcon.errors import CallFailed
from mfalcon.types import Events

OUTCOME_UNKNOWN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL"})
"""Statuses after which a write may have happened."""
NOT_ACCEPTED = frozenset({"RESOURCE_EXHAUSTED"})
"""Statuses after which a write has not happened, and may be tried again."""

_LENGTH = re.compile(r"the history has (\d+) events")


class Written(Enum):
    """How an append came to be in the log."""

    AT_ONCE = "at_once"
    REPEATED = "repeated"
    """An attempt had an unknown outcome, and was not written: a repetition was."""
    FOUND = "found"
    """An attempt had an unknown outcome, and was written."""


class LogViolation(Exception):
    """The log lost an event, has one too many, or answered what no write may be answered."""


class Unresolved(Exception):
    """The outcome of a write is still unknown after all attempts."""


class Writes(Protocol):
    """What is asked of the servers. A delete raises CallFailed."""

    def append_events(self, user_id: str, events: Events, expected_len: int, times: int) -> Sequence[int | CallFailed]:
        """Append the same events so many times at once: the new length or the failure of each."""

    def delete_user(self, user_id: str, meanwhile: Callable[[], object]) -> None:
        """Delete the user. meanwhile: is called before there is an answer."""


def append_surely(
    writes: Writes, user_id: str, events: Events, expected_len: int, keep_trying: Callable[[], bool], times: int = 1
) -> Written:
    """Append events to a history of `expected_len` and know that they are there, once.

    keep_trying: waits a little; False ends the attempts. times: how many of the same race in every attempt. Raises
    LogViolation or Unresolved.
    """
    wanted, unknown = expected_len + len(events), 0
    while True:
        outcomes = writes.append_events(user_id, events, expected_len, times)
        lengths = [outcome for outcome in outcomes if not isinstance(outcome, CallFailed)]
        failures = [outcome for outcome in outcomes if isinstance(outcome, CallFailed)]
        refusals = [failure for failure in failures if failure.code == "FAILED_PRECONDITION"]
        if any(length != wanted for length in lengths):
            raise LogViolation(f"{user_id}: an append to {expected_len} events made {lengths[0]}, must be {wanted}")
        if len(lengths) > 1:
            raise LogViolation(f"{user_id}: {len(lengths)} appends that raced for {expected_len} events all won")
        written = Written.REPEATED if unknown else Written.AT_ONCE
        unknown += sum(_was_unknown(user_id, "append", failure) for failure in failures if failure not in refusals)
        for refusal in refusals:
            _check_refusal(user_id, refusal, wanted, unknown + len(lengths))
        if lengths:
            return written
        if refusals:
            return Written.FOUND
        if not keep_trying():
            raise Unresolved(f"{user_id}: an append to {expected_len} events never ended")


def delete_surely(
    writes: Writes, user_id: str, keep_trying: Callable[[], bool], meanwhile: Callable[[], object] = lambda: None
) -> None:
    """Delete a user and know it. meanwhile: is called during every attempt. Raises LogViolation or Unresolved."""
    while True:
        try:
            writes.delete_user(user_id, meanwhile)
            return
        except CallFailed as error:
            _was_unknown(user_id, "delete", error)
        if not keep_trying():
            raise Unresolved(f"{user_id}: a delete never ended")


def _check_refusal(user_id: str, error: CallFailed, wanted: int, unknown: int) -> None:
    """Raise LogViolation unless the refusal means that an attempt of ours was written, or may have been."""
    found = _LENGTH.search(str(error))
    if found is None or int(found[1]) != wanted or not unknown:
        attempts = f"{unknown} attempts of unknown outcome" if unknown else "no other attempt"
        raise LogViolation(f"{user_id}: an append that makes {wanted} events was refused after {attempts}: {error}")


def _was_unknown(user_id: str, what: str, error: CallFailed) -> bool:
    if error.code in OUTCOME_UNKNOWN:
        return True
    if error.code in NOT_ACCEPTED:
        return False
    raise LogViolation(f"{user_id}: {what} was answered {error}")
