"""Names of what we keep in Redis. One hash tag per user, so that everything of a user is in one slot of a cluster, and
one for each store of item counters.
"""

from dataclasses import dataclass

PLACES = 4
"""For damaged logs of one user."""


@dataclass(frozen=True, slots=True)
class Keys:
    """prefix: lets several deployments share a Redis."""

    prefix: str

    def log(self, user: bytes) -> str:
        """The user's event log."""
        return f"{self.prefix}:{{{user.hex()}}}:log"

    def damaged(self, user: bytes) -> tuple[str, ...]:
        """Where what was found at the place of the user's event log is kept for a while, the first free one first."""
        return tuple(f"{self.prefix}:{{{user.hex()}}}:damaged:{place}" for place in range(1, PLACES + 1))

    def appends(self, user: bytes) -> str:
        """What became of the last appends to that log, by their ids."""
        return f"{self.prefix}:{{{user.hex()}}}:appends"

    def turn(self, user: bytes) -> str:
        """Who may append next, where many want to."""
        return f"{self.prefix}:{{{user.hex()}}}:turn"

    def index(self, user: bytes) -> str:
        """A hash of model -> chunks ever written: what a deletion must erase, states of former models included."""
        return f"{self.prefix}:{{{user.hex()}}}:kv"

    def chunk(self, user: bytes, model: str, number: int) -> str:
        """Chunk `number` of the user's KV state of a model."""
        return f"{self.prefix}:{{{user.hex()}}}:kv:{model}:{number}"

    def counters(self, store: str, what: str) -> str:
        """Something of a store of item counters, all of which is in one slot."""
        return f"{self.prefix}:{{counters:{store}}}:{what}"

    def sweep(self, what: str) -> str:
        """Of the sweep of old logs: whose turn it is, where it stands."""
        return f"{self.prefix}:{{sweep}}:{what}"

    @property
    def counter_names(self) -> str:
        """A set of the stores of item counters that there ever were: what a deletion must look through."""
        return f"{self.prefix}:counters"

    @property
    def deletions(self) -> str:
        """A stream of deletions, for every replica to follow."""
        return f"{self.prefix}:deletions"
