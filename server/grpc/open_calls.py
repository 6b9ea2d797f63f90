"""The calls of each caller that this process has open: one caller cannot take the places of all others."""

from collections import Counter

from mfalcon.errors import Overloaded
from server.access.quota import BUSY_S


class OpenCalls:
    """A call is open until its caller has read the answer: gRPC's library waits for that past every deadline. Lives on
    one event loop.
    """

    def __init__(self, most: int) -> None:
        """most: of one caller."""
        self._most = most
        self._of = Counter[str]()

    def take(self, caller: str) -> None:
        """One more. Raises Overloaded."""
        if self._of[caller] >= self._most:
            text = f"caller {caller}: calls at once: must be within {self._most}, until their answers are read"
            raise Overloaded(text, retry_after_s=BUSY_S, elsewhere=False)
        self._of[caller] += 1

    def give_back(self, caller: str) -> None:
        """One less."""
        self._of[caller] -= 1
        if not self._of[caller]:
            del self._of[caller]
