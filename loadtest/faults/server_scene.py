"""A server with a fault, its victim, and who stands by: what every measurement of a fault of the server needs."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.faults.broken_server import BAD_ITEM, VICTIM
from loadtest.faults.bystanders import PATIENCE_S, RIGHT, HealthWatch, Neighbour, Seen, ask, connected
from loadtest.faults.oracle import BOUND, Life
from loadtest.faults.redis_server import RedisServer
from loadtest.faults.server_process import ServerProcess
from loadtest.faults.world import SHAPE, Person, random_events
from loadtest.load.messages import append_message
from mfalcon.backends.choice import REFERENCE
from mfalcon.models import checkpoint as checkpoints
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.keys import Keys
from mfalcon.types import Events
from proto.ranking_pb2_grpc import RankingStub

Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BOUNDS = {"float32": BOUND, "bfloat16": 2e-2, "float16": 2e-2}
"""Worst score difference that still counts as equal, by what the server computes in."""
KEYS = Keys("faults")
NUM_EVENTS = 64
_NUM_NEIGHBOURS = 3
_FLAGS = {"threads": "1", "microbatch": "64", "kv-budget-mb": "64", "drain-seconds": "1"}
_REDIS_FLAGS = {"redis-prefix": KEYS.prefix, "backend": REFERENCE, "kv-budget-mb": "0"}
"""Encoding is so slow that fetching wins, and nothing is kept that need not be fetched."""
_MORE = 10


@dataclass(frozen=True, slots=True)
class ServerFault:
    """how: it is done. act: does it, and asks for the victim. allowed: outcomes of the victim's requests. refuses:
    whether neighbours may be refused, as by a server that ends. exit_codes: that the server may end with. flags,
    broken, shell: see `ServerProcess`. has_redis: log and states are in one, and states there alone. dtype,
    value_scale: of the model. poison: the value of some of the victim's events.
    """

    name: str
    how: str
    act: Callable[["Scene"], None]
    allowed: tuple[str, ...] = (RIGHT,)
    refuses: bool = False
    exit_codes: tuple[int, ...] = (0,)
    flags: Mapping[str, str] = field(default_factory=dict)
    broken: str | None = None
    shell: str = ""
    has_redis: bool = False
    dtype: Dtype = "float32"
    value_scale: float | None = None
    poison: float | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a fault lasts. ranks: of the victim. freeze_s: of a process that stands still. checkpoints: bad ones,
    all if None.
    """

    ranks: int = 20
    freeze_s: float = 3.0
    checkpoints: int | None = None


@dataclass(slots=True)
class Scene:
    """What a fault's act works with. began: when it was injected. known: when its victim was told. exit_code: of a
    process that has ended. notes: for the row.
    """

    server: ServerProcess
    stub: RankingStub
    neighbour: Neighbour
    health: HealthWatch
    effort: Effort
    victim: Person
    checkpoint: Checkpoint
    redis: RedisServer | None
    seen: Seen = field(default_factory=Seen)
    began: float = 0.0
    known: float | None = None
    exit_code: int | None = None
    notes: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """The fault is there from now on."""
        self.began = time.monotonic()

    def meet(
        self, seed: int = 0, timeout_s: float = PATIENCE_S, *, item: int | None = None, waits: bool = False
    ) -> None:
        """Rank for the victim. item: is among the candidates. waits: for a connection."""
        result = ask(self.stub, self.victim, seed, timeout_s, item=item, waits=waits)
        if isinstance(result, str) and self.known is None:
            self.known = time.monotonic()
        self.seen.add(self.victim, seed, result)

    def tell(self, person: Person, events: Events) -> None:
        """Have the server acknowledge events of somebody. Raises grpc.RpcError."""
        tell(self.stub, person, events)

    def let_others_rank(self) -> bool:
        """Wait for some more scores of the neighbour; False if the server has ended."""
        return self.neighbour.wait_for(_MORE)

    def await_exit(self) -> None:
        """The process ends by itself."""
        self.exit_code = self.server.wait()
        self.notes.append(f"it ended after {time.monotonic() - self.began:.1f} s")

    def stop(self) -> None:
        """As an operator does, unless it has ended."""
        if self.exit_code is None:
            self.server.send(signal.SIGTERM)
            self.exit_code = self.server.wait()


def tell(stub: RankingStub, person: Person, events: Events) -> None:
    """Have a server acknowledge events. Raises grpc.RpcError."""
    stub.AppendEvents(append_message(person.user_id, events, person.life.size), timeout=PATIENCE_S)
    person.life.add(events)


def saved_checkpoint(
    directory: Path, dtype: Dtype = "float32", value_scale: float | None = None, decades: tuple[str, ...] = ()
) -> tuple[Path, Checkpoint]:
    """A random checkpoint on disk, and as a server computes it."""
    made = random_checkpoint(SHAPE, BAD_ITEM, max_history=1_024, value_scale=value_scale, decades=decades)
    path = directory / "checkpoint"
    checkpoints.save(path, made.model, made.items)
    return path, checkpoints.load(path, DTYPES[dtype])


@contextmanager
def scene(fault: ServerFault, path: Path, served: Checkpoint, effort: Effort) -> Iterator[Scene]:
    """Start a server whose neighbours' states are cached, and have everybody in place."""
    with ExitStack() as stack:
        flags = _FLAGS | {"dtype": fault.dtype} | dict(fault.flags)
        redis = stack.enter_context(RedisServer()) if fault.has_redis else None
        if redis is not None:
            flags |= _REDIS_FLAGS | {"redis-url": redis.url}
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        server = stack.enter_context(ServerProcess(path, path.parent, words, fault.broken, fault.shell))
        stub = stack.enter_context(connected(server))
        people = [Person(f"neighbour-{number}", Life()) for number in range(_NUM_NEIGHBOURS)]
        victim = Person(VICTIM, Life())
        for number, person in enumerate((*people, victim)):
            events = random_events(number, NUM_EVENTS)
            if person is victim and fault.poison is not None:
                events["value"][::7] = fault.poison
            tell(stub, person, events)
        with Neighbour(server, people) as neighbour, HealthWatch(server) as health:
            at = Scene(server, stub, neighbour, health, effort, victim, served, redis)
            yield at
        at.stop()
