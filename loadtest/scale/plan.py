"""How many machines, how much Redis and how much network some users need: arithmetic over measured costs.

Every user is alike, and comes in bursts (`gaps.py`). A visit is an append of a few events and a rank. What it costs
depends on where its state is found, that on how many replicas there are, and that on what a visit costs: a fixed
point.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from loadtest.scale.costs import Costs
from loadtest.scale.gaps import DAY_S, Gaps
from mfalcon.types import EVENT_DTYPE

LOG_HEADER_BYTES = 80
_ROUNDS = 200


@dataclass(frozen=True, slots=True)
class Site:
    """What machines are there. pool_bytes: for states, of each core. utilisation: of the cores, at peak.
    state_ttl_s: that a state in Redis lives after its last use; 0 where Redis has logs alone. network_bytes: a second,
    of a machine and of a Redis node. redis_node_bytes: that a node may hold.
    """

    cores: int = 16
    pool_bytes: float = 4 * 2.0**30
    utilisation: float = 0.6
    state_ttl_s: float = 3_600.0
    network_bytes: float = 25e9 / 8
    redis_node_bytes: float = 64 * 2.0**30


@dataclass(frozen=True, slots=True)
class Demand:
    """peak: the busiest minute's rate over the day's mean. events: appended before each visit."""

    users: float
    visits_a_day: float = 10.0
    peak: float = 3.0
    history: int = 1_000
    events: int = 5
    candidates: int = 500

    @property
    def rate(self) -> float:
        """Visits a second, at peak."""
        return self.users * self.visits_a_day / DAY_S * self.peak


@dataclass(frozen=True)
class Plan:
    """What a demand needs on a site, with states kept; `bare_cores` is what it needs without."""

    costs: Costs
    demand: Demand
    site: Site

    @property
    def tokens(self) -> int:
        """Of the window."""
        return self.demand.history - self.costs.window.start(self.demand.history)

    @cached_property
    def cores(self) -> float:
        """That compute, at peak."""
        cores = self._cores_at(0.0)
        for _ in range(_ROUNDS):
            # Half of the way, or two plans would take turns: more cores have more memory, so that fewer are needed.
            cores = (cores + self._cores_at(cores)) / 2
        return cores

    @property
    def machines(self) -> int:
        """Of the site's size; two at least, so that one may fail."""
        return max(2, math.ceil(self.cores / self.site.cores))

    @property
    def shares(self) -> dict[str, float]:
        """Of the visits, by where their state is found."""
        return self._shares(self.cores)

    @property
    def bare_cores(self) -> float:
        """Where every visit encodes its whole history: no states, and no Redis but for the logs."""
        return self.demand.rate * self._bare_s() / self.site.utilisation

    @property
    def ratio(self) -> float:
        """Cores without states over cores with them."""
        return self.bare_cores / self.cores

    @property
    def visit_s(self) -> float:
        """CPU seconds of a visit, on average."""
        return self._visit_s(self.shares)

    @property
    def log_bytes(self) -> float:
        """Redis memory of everybody's log."""
        return self.demand.users * (LOG_HEADER_BYTES + self.demand.history * EVENT_DTYPE.itemsize)

    @property
    def state_bytes(self) -> float:
        """Redis memory of states, at the peak's rate."""
        if not self.site.state_ttl_s:
            return 0.0
        return self.demand.users * self._gaps.held(self.site.state_ttl_s) * self.costs.redis_bytes(self.tokens)

    @property
    def read_bytes(self) -> float:
        """A second, of states from Redis at peak."""
        return self.demand.rate * self.shares["redis"] * self.costs.redis_bytes(self.tokens)

    @property
    def written_bytes(self) -> float:
        """A second, of states to Redis at peak."""
        return self.demand.rate * self._written() if self.site.state_ttl_s else 0.0

    @property
    def redis_nodes(self) -> dict[str, float]:
        """Nodes that each of their limits asks for: memory, network (one way), and the one thread."""
        calls = self.demand.rate * (2 + self.shares["redis"])
        moved = self.read_bytes + self.written_bytes
        busy = calls * self.costs.redis_s + moved * self.costs.redis_byte_s
        return {
            "memory": (self.log_bytes + self.state_bytes) / self.site.redis_node_bytes,
            "network": max(self.read_bytes, self.written_bytes) / self.site.network_bytes / self.site.utilisation,
            "thread": busy / self.site.utilisation,
        }

    @property
    def network_share(self) -> float:
        """Of a machine's network, one way, that states take at peak."""
        return max(self.read_bytes, self.written_bytes) / self.machines / self.site.network_bytes

    @property
    def _gaps(self) -> Gaps:
        """At peak everybody comes so much more often."""
        return Gaps(self.demand.visits_a_day * self.demand.peak)

    def _shares(self, cores: float) -> dict[str, float]:
        each = self.costs.pool_bytes(self.tokens)
        host = self._gaps.hit_rate(self._gaps.kept_s(cores * self.site.pool_bytes / each / self.demand.users))
        redis = max(host, self._gaps.hit_rate(self.site.state_ttl_s)) - host if self.site.state_ttl_s else 0.0
        if not self.costs.fetch_wins(0, self.tokens - self.demand.events, self.tokens):
            redis = 0.0
        return {"host": host, "redis": redis, "none": 1 - host - redis}

    def _cores_at(self, cores: float) -> float:
        return self.demand.rate * self._visit_s(self._shares(cores)) / self.site.utilisation

    def _visit_s(self, shares: dict[str, float]) -> float:
        costs, tokens, events = self.costs, self.tokens, self.demand.events
        append = costs.encode_s(tokens - events, events)
        store = costs.store_cpu_s(round(self._written())) if self.site.state_ttl_s else 0.0
        found = shares["host"] * append + shares["redis"] * (append + costs.fetch_cpu_s(tokens))
        return self._always_s() + found + shares["none"] * costs.encode_s(0, tokens) + store

    def _bare_s(self) -> float:
        return self._always_s() + self.costs.encode_s(0, self.tokens)

    def _always_s(self) -> float:
        costs, demand = self.costs, self.demand
        appending = costs.append_s + costs.append_log_s + demand.events * costs.append_event_s
        return costs.host_s + costs.log_s + appending + costs.score_s(self.tokens, demand.candidates)

    def _written(self) -> float:
        """Bytes of a state that a visit writes, on average: half of the last chunk, and what is new."""
        tokens = min(self.tokens, self.demand.events + self.costs.chunk_tokens / 2)
        return tokens * self.costs.redis_token_bytes


def even_bandwidth(costs: Costs, tokens: int) -> float | None:
    """Bytes a second below which fetching a state takes longer than encoding it on one core; None where it always does.

    Where many cores share a network this is what is left for one.
    """
    spare = costs.encode_s(0, tokens) - costs.fetch_cpu_s(tokens) - costs.latency_s
    return costs.redis_bytes(tokens) / spare if spare > 0 else None


def even_tokens(costs: Costs, bandwidth: float, most: int = 1 << 20) -> int | None:
    """The shortest state that is fetched at least as fast as it is encoded; None if there is none up to `most`.

    Encoding grows with the square, so whatever is longer is fetched faster too.
    """
    low, high = 0, most
    if not _pays(costs, high, bandwidth):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _pays(costs, middle, bandwidth) else (middle, high)
    return high


def _pays(costs: Costs, tokens: int, bandwidth: float) -> bool:
    even = even_bandwidth(costs, tokens)
    return even is not None and even <= bandwidth
