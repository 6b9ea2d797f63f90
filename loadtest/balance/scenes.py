"""What happens to replicas behind a balancer, one scene after the other, and what users notice of it."""

import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from loadtest.balance.balancer import Balancer, Kind
from loadtest.balance.group import Group
from loadtest.balance.ranks import Load, Ranked, Users
from loadtest.faults.server_process import ServerProcess
from mfalcon.rank_key import rank_key
from mfalcon_client import Client

_LOG_S = 0.5
"""After which a balancer has written its lines."""
_SLOW = 2.0
_WINDOW_S = 1.0
_HANDED = re.compile(r"hand-over: (\d+) states")


@dataclass(frozen=True, slots=True)
class Effort:
    """num_users, rate, threads: of the load. seconds: of each phase of a scene. num_events, num_candidates: of each
    user.
    """

    num_users: int = 200
    rate: float = 60.0
    threads: int = 8
    seconds: float = 6.0
    num_events: int = 200
    num_candidates: int = 100


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one scene. num_calls, failed: what callers sent, and the codes of what failed. most_tries: of one call.
    p99_ms, slow_s: before anything happened, and the seconds after it in which the p99 was more than twice that. hits:
    part of the answers whose state was found. moved: part of the users who changed their replica. moved_living: of
    those whose replica lived. besides: what else is to be told.
    """

    scene: str
    num_calls: int
    failed: Counter[str]
    most_tries: int
    p99_ms: float
    slow_s: int
    hits: float
    moved: float | None = None
    moved_living: float | None = None
    besides: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A call in a balancer's log."""

    user: int
    replica: str
    tries: int


Homes = dict[int, list[str]]
"""The replica of each call, by user."""


@dataclass(slots=True, eq=False)
class Watched:
    """A scene as it is seen. first: lines that the balancer's log had before. marks: moments in which something
    happened, as times and as lines since the first.
    """

    calls: list[Ranked]
    first: int
    marks: list[tuple[float, int]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def homes(self, first: int = 0, last: int | None = None) -> Homes:
        """Of some lines."""
        homes: Homes = {}
        for line in self.lines[first:last]:
            homes.setdefault(line.user, []).append(line.replica)
        return homes

    def outcome(self, scene: str, besides: str = "", moved: tuple[float, float] | None = None) -> Outcome:
        """What came of it."""
        quiet_until = self.marks[0][0] if self.marks else float("inf")
        usual = _p99([call.seconds for call in self.calls if call.at < quiet_until])
        since, windows = self.marks[-1][0] if self.marks else float("inf"), dict[int, list[float]]()
        for call in self.calls:
            if call.at >= since:
                windows.setdefault(int((call.at - since) / _WINDOW_S), []).append(call.seconds)
        answered = [call for call in self.calls if call.code == "OK"]
        return Outcome(
            scene=scene,
            num_calls=len(self.calls),
            failed=Counter(call.code for call in self.calls if call.code != "OK"),
            most_tries=max((line.tries for line in self.lines), default=0),
            p99_ms=1e3 * usual,
            slow_s=sum(_p99(seconds) > _SLOW * usual for seconds in windows.values()),
            hits=sum(call.source != "NONE" for call in answered) / max(1, len(answered)),
            moved=moved[0] if moved else None,
            moved_living=moved[1] if moved else None,
            besides=besides,
        )


class Stage:
    """Replicas, a balancer, and users with a state each. Scenes leave all replicas as they were."""

    def __init__(self, group: Group, users: Users, effort: Effort) -> None:
        assert group.balancer is not None
        self._replicas, self._redis = group.replicas, group.redis
        self._balancer: Balancer = group.balancer
        self._users, self._effort = users, effort
        self._numbers = {rank_key(name): number for number, name in enumerate(users.names)}

    def warm(self) -> None:
        """Every user has a state where the balancer sends him."""
        with Client(self._balancer.grpc, timeout_s=30) as client:
            for user in range(len(self._users.names)):
                self._users.rank(client, user)

    def sticks(self) -> Outcome:
        """Nothing happens."""
        with self._watched() as watched:
            time.sleep(self._effort.seconds)
        homes = watched.homes()
        at_home = sum(max(Counter(of_one).values()) for of_one in homes.values()) / len(watched.lines)
        alone = sum(len(set(of_one)) == 1 for of_one in homes.values()) / len(homes)
        return watched.outcome("nothing", f"{at_home:.1%} of calls at home, {alone:.0%} of users on one replica")

    def hot_user(self) -> Outcome:
        """One user asks all the while, on every connection."""
        with self._watched(only=(0,)) as watched:
            time.sleep(self._effort.seconds)
        (homes,) = watched.homes().values()
        shares = ", ".join(f"{number / len(homes):.0%}" for _, number in Counter(homes).most_common())
        return watched.outcome("a hot user", f"calls by replica: {shares}")

    def killed(self) -> list[Outcome]:
        """One replica is killed, and comes back."""
        victim, seconds = self._replicas[0], self._effort.seconds
        with self._watched() as watched:
            time.sleep(seconds)
            self._mark(watched)
            victim.kill()
            time.sleep(seconds)
            settled = len(self._lines()) - watched.first
            time.sleep(seconds)
        before, after = watched.homes(0, watched.marks[0][1]), watched.homes(settled)
        gone = watched.outcome("kill -9 of one", moved=self._moves(before, after, victim))
        with self._watched() as watched:
            time.sleep(seconds)
            self._mark(watched)
            victim.start()
            victim.wait_ready()
            self._mark(watched)
            time.sleep(2 * seconds)
        return [gone, watched.outcome("its return")]

    def frozen(self) -> Outcome:
        """One replica is stopped, and goes on."""
        victim, seconds = self._replicas[1], self._effort.seconds
        with self._watched() as watched:
            time.sleep(seconds)
            self._mark(watched)
            victim.send(signal.SIGSTOP)
            time.sleep(seconds)
            victim.send(signal.SIGCONT)
            time.sleep(seconds)
        return watched.outcome("SIGSTOP of one, SIGCONT")

    def balancer_restarted(self) -> Outcome:
        """The balancer itself is killed, and started again."""
        with self._watched() as watched:
            time.sleep(self._effort.seconds)
            self._mark(watched)
            self._balancer.kill()
            self._balancer.start()
            time.sleep(self._effort.seconds)
        before, after = watched.homes(0, watched.marks[0][1]), watched.homes(watched.marks[0][1])
        return watched.outcome("restart of the balancer", moved=self._moves(before, after, None))

    def rolling_restart(self, scene: str, *, evicted: bool = False) -> Outcome:
        """Every replica in turn gets SIGTERM, and is started again. evicted: Redis has lost every state before."""
        if evicted:
            found = self._redis.command("KEYS", "*:kv:*")
            assert isinstance(found, list)
            self._redis.command("DEL", *(name.decode() for name in found if isinstance(name, bytes)))
        with self._watched() as watched:
            time.sleep(self._effort.seconds)
            self._mark(watched)
            for replica in self._replicas:
                replica.send(signal.SIGTERM)
                replica.wait()
                replica.kill()  # its guard
                replica.start()
                replica.wait_ready()
                time.sleep(self._effort.seconds / 2)
        handed = sum(int(number) for one in self._replicas for number in _HANDED.findall(one.written))
        return watched.outcome(scene, f"{handed} states handed over" if handed else "")

    @contextmanager
    def _watched(self, only: Sequence[int] = ()) -> Iterator[Watched]:
        """A scene under load."""
        effort = self._effort
        load = Load(self._users, self._balancer.grpc, effort.rate, effort.threads, only)
        watched = Watched(load.calls, len(self._lines()))
        with load.running():
            yield watched
        time.sleep(_LOG_S)
        watched.lines = self._lines()[watched.first :]

    def _mark(self, watched: Watched) -> None:
        """Something happens now."""
        watched.marks.append((time.monotonic(), len(self._lines()) - watched.first))

    def _moves(self, before: Homes, after: Homes, gone: ServerProcess | None) -> tuple[float, float]:
        """The parts of the users who had one replica, and of those whose replica is not gone, that have another."""
        living, moved, moved_living = 0, 0, 0
        known = [user for user in before if user in after]
        for user in known:
            old, new = (Counter(homes[user]).most_common(1)[0][0] for homes in (before, after))
            lived = gone is None or not self._is(old, gone)
            living, moved, moved_living = living + lived, moved + (old != new), moved_living + (lived and old != new)
        return moved / max(1, len(known)), moved_living / max(1, living)

    def _is(self, home: str, replica: ServerProcess) -> bool:
        if self._balancer.kind is Kind.HAPROXY:
            return home == f"r{self._replicas.index(replica)}"
        return home == replica.grpc

    def _lines(self) -> list[Line]:
        """Of the balancer's log, those of our users."""
        lines = []
        for call in self._balancer.calls():
            user = self._numbers.get(str(call["rank_key"]))
            if user is not None:
                lines.append(Line(user, str(call["replica"]).split(", ")[-1], self._tries(str(call["tries"]))))
        return lines

    def _tries(self, told: str) -> int:
        match self._balancer.kind:
            case Kind.NGINX:  # the status of each
                return len(told.split(", "))
            case Kind.HAPROXY:  # the number of further ones
                return 1 + int(told.lstrip("+"))
            case _:
                return int(told) if told.isdigit() else 0


def _p99(seconds: Sequence[float]) -> float:
    return float(np.percentile(seconds, 99)) if seconds else float("nan")
