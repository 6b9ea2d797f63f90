"""What is the users': their histories, what was deleted of them, and Redis. A server has one, whatever it serves."""

from collections.abc import Callable
from dataclasses import dataclass

from mfalcon.engine.redis_parts import RedisOptions, RedisParts
from mfalcon.errors import ConfigError
from mfalcon.history.deletions import Deletion
from mfalcon.history.history import History, Retention
from mfalcon.history.local_log import LocalLog
from mfalcon.history.log import EventLog
from mfalcon.history.tombstones import Tombstones
from mfalcon.metrics.states import StateMetrics


@dataclass(frozen=True, slots=True)
class HistoryOptions:
    """log_max_events: of a user, the newest that are always kept: at least the longest window served. log_slack: events
    beyond them before a log is cut. redis: None keeps everything in this process.
    """

    log_max_events: int = 16_384
    log_slack: int = 1_024
    redis: RedisOptions | None = None


class Histories:
    """Owns the event log, the tombstones and the connection to Redis. Lives on the event loop."""

    def __init__(self, options: HistoryOptions, metrics: StateMetrics) -> None:
        self.options = options
        self.tombstones = Tombstones()
        self._listener: Callable[[Deletion | None], None] = lambda _: None
        retention = Retention(options.log_max_events, options.log_slack)
        self.redis = (
            RedisParts(options.redis, retention, metrics, self._deleted_elsewhere)
            if options.redis is not None
            else None
        )
        shared = self.redis.log if self.redis is not None else None
        self.log: EventLog = shared or LocalLog(retention)

    @property
    def is_shared(self) -> bool:
        """Whether other replicas write to the same log."""
        return self.redis is not None and self.redis.log is not None

    def copy(self, user: bytes) -> History | None:
        """What is known here of a user's history in Redis, without asking; None if that is nothing."""
        return self.redis.log.copy(user) if self.redis is not None and self.redis.log is not None else None

    def check_window(self, model: str, max_history: int) -> None:
        """Raise ConfigError if a model's window is longer than what a log keeps for certain."""
        if max_history > self.options.log_max_events:
            raise ConfigError(
                f"log_max_events: got {self.options.log_max_events}, must be at least {max_history}, the window of "
                f"model {model}"
            )

    def listen(self, on_deletion: Callable[[Deletion | None], None]) -> None:
        """Tell of users that another replica deleted; None: some deletions may have been missed."""
        self._listener = on_deletion

    async def start(self) -> None:
        """Begin what runs beside the requests: Redis' probes. Raises ConfigError."""
        if self.redis is not None:
            await self.redis.start()

    async def close(self) -> None:
        """Close the connections."""
        if self.redis is not None:
            await self.redis.close()

    def _deleted_elsewhere(self, deletion: Deletion | None) -> None:
        self._listener(deletion)
