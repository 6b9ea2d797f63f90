"""A replica in the simulation: an event loop, a device and a block pool, over a Redis that all replicas share."""

from collections.abc import Generator
from dataclasses import dataclass

from simpy import Environment, Event

from loadtest.scale.cores import Cores
from loadtest.scale.costs import Costs
from loadtest.scale.device import Device, Job
from loadtest.scale.outcome import Outcome
from loadtest.scale.redis_tier import RedisTier
from loadtest.scale.thread import Doing, Thread
from loadtest.scale.tier import Held, Tier


@dataclass(frozen=True, slots=True)
class Request:
    """A rank: the length of the user's history, the candidates, and when it must be answered."""

    user: int
    events: int
    candidates: int
    due: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What a replica says. encoded: tokens."""

    outcome: Outcome
    encoded: int = 0


class Replica:
    """life: counts the times that it was started; what an earlier life took was lost with it."""

    def __init__(
        self, env: Environment, costs: Costs, cores: Cores, budget_bytes: float, redis: RedisTier | None, slice_s: float
    ) -> None:
        self.pool = Tier(budget_bytes)
        self.life = 0
        self._env = env
        self._costs = costs
        self._cores = cores
        self._redis = redis
        self._loop = Thread(env, cores)
        self._device = Device(env, cores, slice_s)

    def kill(self) -> None:
        """End the process: its states are gone, and what it was doing."""
        self.life += 1
        self.pool.clear()
        self._device.kill()

    def append(self, num_events: int) -> Doing:
        """Write events to a log."""
        in_redis = self._costs.append_log_s if self._redis else 0.0
        yield from self._loop.run(self._costs.append_s + num_events * self._costs.append_event_s + in_redis)

    def rank(self, request: Request) -> Generator[Event, None, Answer]:
        """Answer a request, if this life lasts so long: "failed" if not."""
        life, costs, redis = self.life, self._costs, self._redis
        yield from self._loop.run(costs.host_s + (costs.log_s if redis else 0.0))
        start = costs.window.start(request.events)
        tokens = request.events - start
        stored = redis.states.get(request.user, start) if redis else None
        in_redis, fetched = stored.stop - start if stored else 0, 0
        if redis and costs.fetch_wins(self._held(request.user, start), in_redis, tokens):
            yield from redis.send(in_redis)
            yield self._cores.run(costs.fetch_cpu_s(in_redis))
            fetched = in_redis
        if life != self.life:
            return Answer("failed")
        scoring = costs.score_s(tokens, request.candidates)
        before = max(fetched, self._held(request.user, start))
        forecast = costs.encode_s(before, tokens - before) + scoring
        if not self._device.admits(request.due, forecast):
            return Answer("refused")

        def begin() -> float:
            """What is held now: another request of the user may have been first."""
            nonlocal before
            here = self._held(request.user, start)
            before = max(fetched, here)
            outcome: Outcome = "none" if not before else "host" if here >= fetched else "redis"
            found.append(outcome)
            return costs.encode_s(before, tokens - before) + scoring

        found: list[Outcome] = []
        job = Job(request.due, forecast, begin, self._env.event())
        self._device.submit(job)
        yield job.done
        if life != self.life:
            return Answer("failed")
        if not job.done.value:
            return Answer("late")
        self._keep(request.user, start, before, tokens)
        return Answer(found[0], tokens - before)

    def _held(self, user: int, start: int) -> int:
        held = self.pool.get(user, start)
        return held.stop - start if held else 0

    def _keep(self, user: int, start: int, before: int, tokens: int) -> None:
        if tokens >= self._held(user, start):
            self.pool.put(user, Held(start, start + tokens, self._costs.pool_bytes(tokens)))
        if self._redis and tokens > before:
            self._env.process(self._store(self._redis, user, start, tokens))

    def _store(self, redis: RedisTier, user: int, start: int, tokens: int) -> Doing:
        """Behind the request's back."""
        stored = redis.states.get(user, start)
        num_bytes = self._costs.written_bytes(stored.stop - start if stored else 0, tokens)
        if num_bytes:
            yield self._cores.run(self._costs.store_cpu_s(num_bytes))
            yield from redis.receive(num_bytes)
            redis.states.put(user, Held(start, start + tokens, self._costs.redis_bytes(tokens)))
