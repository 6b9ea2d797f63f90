"""N simulated replicas behind a balancer that knows the user of a request, with failures and deploys."""

import math
from collections.abc import Generator
from dataclasses import dataclass

from simpy import Environment, Event

from loadtest.scale.cores import Cores
from loadtest.scale.costs import Costs
from loadtest.scale.outcome import Ended
from loadtest.scale.redis_tier import RedisTier
from loadtest.scale.replica import Answer, Replica, Request
from loadtest.scale.ring import Ring, most_in_flight
from loadtest.scale.thread import Doing, Thread
from mfalcon.rank_key import rank_key


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """num_replicas: each computes on one core. pool_bytes: of each, for states. redis_bytes: of states; None without
    a Redis. bound: most requests under way at a replica, as a multiple of its share; infinite for none.
    shared_cores: of the one machine where all replicas, Redis and whoever asks run; None where each has its own.
    """

    num_replicas: int = 4
    pool_bytes: float = 1 << 30
    redis_bytes: float | None = None
    bound: float = math.inf
    shared_cores: float | None = None
    slice_s: float = 0.008


class SimFleet:
    """`ended` has every request that came to its end, in that order."""

    def __init__(self, env: Environment, costs: Costs, options: FleetOptions) -> None:
        self.ended: list[Ended] = []
        self._env = env
        self._costs = costs
        self._bound = options.bound
        shared = None if options.shared_cores is None else Cores(env, options.shared_cores)
        self.cores = [shared or Cores(env, 2.0) for _ in range(options.num_replicas)]
        self.redis: RedisTier | None = None
        if options.redis_bytes is not None:
            self.redis = RedisTier(env, costs, shared or Cores(env, 1.0), options.redis_bytes)
        self.replicas = [
            Replica(env, costs, cores, options.pool_bytes, self.redis, options.slice_s) for cores in self.cores
        ]
        self._asks = Thread(env, shared) if shared else None
        self.ring = Ring([replica_name(number) for number in range(options.num_replicas)])
        self._up = [True] * options.num_replicas
        self._in_flight = [0] * options.num_replicas

    def rank(self, user: int, events: int, candidates: int, deadline_s: float) -> Generator[Event, None, Ended]:
        """Ask for a user; at most once again, of another replica, if the first is lost."""
        began, tried = self._env.now, set[int]()
        due = began + deadline_s
        number, answer = -1, Answer("failed")
        if self._asks:
            yield from self._asks.run(self._costs.client_s)
        for _ in range(2):
            owner = self._owner(user, tried)
            if owner is None:
                break
            number = owner
            tried.add(number)
            self._in_flight[number] += 1
            answer = yield from self.replicas[number].rank(Request(user, events, candidates, due))
            self._in_flight[number] -= 1
            if answer.outcome != "failed":
                break
        ended = Ended(user, began, self._env.now, answer.outcome, number, answer.encoded, retried=len(tried) > 1)
        self.ended.append(ended)
        return ended

    def append(self, user: int, num_events: int) -> Doing:
        """Events to a user's log."""
        owner = self._owner(user, set())
        if owner is not None:
            yield from self.replicas[owner].append(num_events)

    def kill(self, number: int) -> None:
        """SIGKILL: what it holds and does is gone, and the balancer sends it nothing."""
        self._up[number] = False
        self.replicas[number].kill()

    def start(self, number: int) -> None:
        """It is back, and cold."""
        self._up[number] = True

    def deploy(self, number: int, drain_s: float, restart_s: float) -> Doing:
        """Out of the ring; what it has is answered, or lost at the end of the drain; then a new process, cold."""
        self._up[number] = False
        until = self._env.now + drain_s
        while self._in_flight[number] and self._env.now < until:
            yield self._env.timeout(min(0.05, drain_s))
        self.replicas[number].kill()
        yield self._env.timeout(restart_s)
        self.start(number)

    def _owner(self, user: int, tried: set[int]) -> int | None:
        most = most_in_flight(self._bound, sum(self._in_flight), sum(self._up))

        def takes(number: int) -> bool:
            return self._up[number] and number not in tried and self._in_flight[number] < most

        return self.ring.owner(rank_key(user_id(user)), takes)


def replica_name(number: int) -> str:
    """As the ring hashes it."""
    return f"replica-{number}"


def user_id(user: int) -> str:
    """As the ring hashes it, and as real servers know it."""
    return f"scale-{user}"
