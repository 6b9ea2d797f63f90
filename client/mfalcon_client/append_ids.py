"""Names of appends, by which a server knows one that is asked again; and whether the servers know them at all."""

import secrets
import time

from mfalcon_client.types import Appended, Ranking

DOUBT_S = 600.0
"""After an answer of a server that keeps no ids: others of its release may be there for a while."""


def new_append_id() -> str:
    """One that nobody else has: 96 random bits."""
    return secrets.token_urlsafe(12)


class KeptIds:
    """Whether every server that may answer keeps append ids, as far as their answers have told. Thread-safe.

    A server that does tells the version of the history in its answers. One of an older release does not, ignores the
    id, and would write a repeated append twice.
    """

    def __init__(self) -> None:
        self._has_told = False
        self._doubtful_until = 0.0

    @property
    def surely(self) -> bool:
        """Some server has told, and none of late that keeps none."""
        return self._has_told and time.monotonic() >= self._doubtful_until

    def heard(self, answer: object) -> None:
        """Learn from an answer."""
        if isinstance(answer, Appended) and not answer.version:
            self._doubtful_until = time.monotonic() + DOUBT_S
        elif (isinstance(answer, Appended) and answer.version) or (
            isinstance(answer, Ranking) and answer.history_version
        ):
            self._has_told = True
