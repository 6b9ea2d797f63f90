"""Redis in the simulation: states of all replicas by bytes, one thread, and what went over its network."""

from simpy import Environment

from loadtest.scale.cores import Cores
from loadtest.scale.costs import Costs
from loadtest.scale.thread import Doing, Thread
from loadtest.scale.tier import Tier


class RedisTier:
    """sent, received: bytes of states."""

    def __init__(self, env: Environment, costs: Costs, cores: Cores, budget_bytes: float) -> None:
        self.states = Tier(budget_bytes)
        self.sent = self.received = 0
        self._env = env
        self._costs = costs
        self._thread = Thread(env, cores)

    def send(self, tokens: int) -> Doing:
        """A state on its way to a replica."""
        num_bytes = self._costs.redis_bytes(tokens)
        self.sent += num_bytes
        yield from self._thread.run(self._costs.redis_s + num_bytes * self._costs.redis_byte_s)
        yield self._env.timeout(self._costs.travel_s(tokens))

    def receive(self, num_bytes: int) -> Doing:
        """A part of a state that is written."""
        self.received += num_bytes
        yield from self._thread.run(self._costs.redis_s + num_bytes * self._costs.redis_byte_s)
