"""How much of the server a caller may use, and the account of what he did.

The rule of charging, for every request that asks the engine, by whatever transport and protocol; each rank of a batch
is one, a batch of appends is one:

- It is charged once, in the engine's process, after it was decoded and checked and right before the engine is asked: a
  request, and the candidates of a rank or the conditions of interests. What was refused before that (no valid
  credential, no right, bad input, a server that drains) was no work for the engine, and costs nothing.
- One that any limit refuses is charged to none of them.
- One that the engine could not take (overload, not ready, shutting down, too few members: nothing was done, and the
  caller will come again) is given back whole. All else stays charged: an answer, bad input that only the engine could
  see, a deadline that passed, a caller that left.
- A hedge or a repeated attempt is a request of its own.
"""

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

from mfalcon.errors import NotReady, Overloaded, ShuttingDown, TooFewMembers
from mfalcon.metrics.callers import CallerMetrics

DAY_S: Final = 86_400
BUSY_S: Final = 0.1
"""After which a caller with too many requests at once may try again: nobody knows when one of his will end."""
_NOT_TAKEN = (Overloaded, NotReady, ShuttingDown, TooFewMembers)


@dataclass(frozen=True, slots=True)
class Quota:
    """What a caller may use; None is as much as there is.

    requests_per_s, candidates_per_s: rates, with as many at once (request_burst, candidate_burst) after a pause.
    candidates_per_day: of a calendar day in UTC. max_concurrent: requests that the engine works on.
    """

    requests_per_s: float | None = None
    request_burst: int | None = None
    candidates_per_s: float | None = None
    candidate_burst: int | None = None
    candidates_per_day: int | None = None
    max_concurrent: int | None = None


class Bucket:
    """Fills with `rate` a second up to `burst`. What is larger than the burst is let through when it is full, and owes
    the rest: a large request waits for its turn, and the rate holds all the same.
    """

    def __init__(self, rate: float, burst: int | None) -> None:
        self.rate = rate
        self.burst = float(burst) if burst is not None else max(1.0, rate)
        self._level = self.burst
        self._at = -math.inf

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken; 0 for now."""
        if now > self._at:
            self._level = (
                self.burst if self._at == -math.inf else min(self.burst, self._level + (now - self._at) * self.rate)
            )
            self._at = now
        lacking = min(amount, self.burst) - self._level
        return max(0.0, lacking / self.rate) if lacking > 1e-9 else 0.0

    def take(self, amount: float) -> None:
        """What was allowed."""
        self._level -= amount

    def give_back(self, amount: float) -> None:
        """What was taken for nothing."""
        self._level = min(self.burst, self._level + amount)

    def changed(self, rate: float, burst: int | None) -> "Bucket":
        """With another rate, and as much of a burst left as there is."""
        bucket = Bucket(rate, burst)
        bucket._level, bucket._at = min(self._level, bucket.burst), self._at
        return bucket


class Account:
    """What one caller did. Times are readings of a monotonic clock, in seconds; days are of the calendar, in UTC."""

    def __init__(self, name: str, quota: Quota) -> None:
        self.name = name
        self.quota = quota
        self.running = 0
        self._requests = _bucket(None, quota.requests_per_s, quota.request_burst)
        self._candidates = _bucket(None, quota.candidates_per_s, quota.candidate_burst)
        self._day = 0
        self._used = 0

    def adopt(self, quota: Quota) -> None:
        """Have other limits from now on; what was used stays used."""
        self.quota = quota
        self._requests = _bucket(self._requests, quota.requests_per_s, quota.request_burst)
        self._candidates = _bucket(self._candidates, quota.candidates_per_s, quota.candidate_burst)

    def charge(self, candidates: int, now: float, wall: float) -> tuple[int, str | None, float | None]:
        """Charge a request, or say which limit refuses it: (the day, the limit, seconds until it would not). wall:
        seconds since 1970.
        """
        quota, day = self.quota, int(wall // DAY_S)
        if day > self._day:  # a clock that was set back begins no new day
            self._day, self._used = day, 0
        elif day < self._day - 1:  # it had been far ahead, and nobody shall wait until that day is here
            self._day = day
        if quota.max_concurrent is not None and self.running >= quota.max_concurrent:
            return day, "max_concurrent", BUSY_S
        if self._requests is not None and (wait := self._requests.wait_s(1, now)):
            return day, "requests_per_s", wait
        if candidates and self._candidates is not None and (wait := self._candidates.wait_s(candidates, now)):
            return day, "candidates_per_s", wait
        most = quota.candidates_per_day
        if candidates and most is not None and self._used + candidates > most:
            return day, "candidates_per_day", None if candidates > most else (self._day + 1) * DAY_S - wall
        self.running += 1
        self._used += candidates
        if self._requests is not None:
            self._requests.take(1)
        if candidates and self._candidates is not None:
            self._candidates.take(candidates)
        return self._day, None, 0.0

    def give_back(self, candidates: int, day: int) -> None:
        """A request was charged on a day, and the engine did nothing for it."""
        if self._requests is not None:
            self._requests.give_back(1)
        if candidates and self._candidates is not None:
            self._candidates.give_back(candidates)
        if day == self._day:
            self._used -= candidates


def _bucket(before: Bucket | None, rate: float | None, burst: int | None) -> Bucket | None:
    if rate is None:
        return None
    return Bucket(rate, burst) if before is None else before.changed(rate, burst)


class Ledger:
    """The accounts of all callers. Lives on one event loop, the engine's: there is one of a server, however many
    front-ends it has.
    """

    def __init__(self, metrics: CallerMetrics) -> None:
        self._metrics = metrics
        self._accounts: dict[str, Account] = {}

    def know(self, quotas: Mapping[str, Quota]) -> None:
        """These are the callers from now on."""
        for name, quota in quotas.items():
            account = self._accounts.get(name)
            if account is None:
                self._accounts[name] = Account(name, quota)
            elif account.quota != quota:
                account.adopt(quota)
        for name in self._accounts.keys() - quotas.keys():
            del self._accounts[name]

    def charged(self, name: str, candidates: int = 0) -> AbstractContextManager[None]:
        """A request of a caller, charged by the rule of this module. Raises Overloaded, and what the request does."""
        account = self._accounts.get(name)
        if account is None:  # nobody looks who asks, or the file has just lost the caller
            return nullcontext()
        day, limit, wait_s = account.charge(candidates, time.monotonic(), time.time())
        if limit is not None:
            self._metrics.refused(name, limit)
            raise over(account, limit, candidates, wait_s)
        self._metrics.begun(name, candidates)
        return Charge(account, candidates, day, self._metrics)


class Charge:
    """A request that was charged, until it ends."""

    __slots__ = ("_account", "_candidates", "_day", "_metrics")

    def __init__(self, account: Account, candidates: int, day: int, metrics: CallerMetrics) -> None:
        self._account = account
        self._candidates = candidates
        self._day = day
        self._metrics = metrics

    def __enter__(self) -> None:
        """It was charged already."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        account = self._account
        if isinstance(error, _NOT_TAKEN) and not error.may_be_done:
            account.give_back(self._candidates, self._day)
            self._metrics.given_back(account.name, self._candidates)
        account.running -= 1
        self._metrics.ended(account.name)


def over(account: Account, limit: str, candidates: int, wait_s: float | None) -> Overloaded:
    """The refusal: which limit, of whom, and when to come again."""
    most = getattr(account.quota, limit)
    got = f"got {candidates} candidates, " if limit.startswith("candidates") else ""
    when = "which this request never is" if wait_s is None else f"try again in {_shown(wait_s)}"
    return Overloaded(
        f"caller {account.name}: {limit}: {got}must be within {most:g}; {when}",
        retry_after_s=wait_s,
        elsewhere=False,
        of_caller=limit == "requests_per_s",
    )


def _shown(seconds: float) -> str:
    return f"{math.ceil(1_000 * seconds)} ms" if seconds < 1 else f"{math.ceil(seconds)} s"
