"""Barriers and buffers of a multiprocessor, as far as they order what its warps do, and every order that they allow.

A program is a list of operations for each agent (the producer's warp, the consumers' warpgroups), recorded from the
kernel's own code by `tests.kernels.hopper_machine`. `explore` walks through all their interleavings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


class ProtocolError(AssertionError):
    """Something that a program must never do; the message says what."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """An mbarrier. count: arrivals that end a phase; missing: of this phase; missing_bytes: of copies that it expects;
    phase: of those that have ended, modulo 2 in hardware.
    """

    count: int
    missing: int
    missing_bytes: int = 0
    phase: int = 0

    def arrive(self, num_bytes: int = 0) -> "Barrier":
        """One arrival; with bytes it expects a copy of so many."""
        if not self.missing:
            raise ProtocolError("more arrivals in a phase than the barrier counts")
        return _settled(self.count, self.missing - 1, self.missing_bytes + num_bytes, self.phase)

    def land(self, num_bytes: int) -> "Barrier":
        """Bytes of a copy have come."""
        return _settled(self.count, self.missing, self.missing_bytes - num_bytes, self.phase)

    def ended(self, parity: int) -> bool:
        """Whether who waits for the end of a phase of this parity goes on."""
        return self.phase % 2 != parity


def _settled(count: int, missing: int, missing_bytes: int, phase: int) -> Barrier:
    if missing or missing_bytes:
        return Barrier(count, missing, missing_bytes, phase)
    return Barrier(count, count, 0, phase + 1)


@dataclass(frozen=True, slots=True)
class Wait:
    """For the end of a phase of this parity."""

    barrier: str
    parity: int


@dataclass(frozen=True, slots=True)
class Arrive:
    """num_bytes: of a copy that it expects."""

    barrier: str
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Start a copy into a buffer, which lands at a barrier some time later."""

    buffer: str
    barrier: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Store:
    """Write a buffer from registers."""

    buffer: str


@dataclass(frozen=True, slots=True)
class Load:
    """Read a buffer into registers, to its end."""

    buffer: str


@dataclass(frozen=True, slots=True)
class Read:
    """Start a product that reads a buffer."""

    buffer: str


@dataclass(frozen=True, slots=True)
class Done:
    """The products that read these buffers have ended."""

    buffers: tuple[str, ...]


Operation = Wait | Arrive | Copy | Store | Load | Read | Done


@dataclass(frozen=True, slots=True)
class Buffer:
    """num_copies: that were begun. copying: to which barrier, with how many bytes. readers: whose products run.
    seen: who has read the present content to its end.
    """

    num_copies: int = 0
    copying: tuple[str, int] | None = None
    readers: frozenset[str] = frozenset()
    seen: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Program:
    """barriers: count of each. agents: operations of each. sharers: how many agents read a content of a buffer that is
    filled more than once.
    """

    barriers: Mapping[str, int]
    agents: Mapping[str, Sequence[Operation]]
    sharers: int = 2


@dataclass(frozen=True, slots=True)
class State:
    """Of a multiprocessor, between two operations."""

    barriers: tuple[Barrier, ...]
    buffers: tuple[Buffer, ...]
    at: tuple[int, ...]


@dataclass(slots=True)
class _Explorer:
    """Steps through a program. A step is all that an agent does between two points at which others may tell the
    difference: what follows a wait belongs to it, and the end of a product to what follows.

    A copy lands when somebody waits for it, no earlier: no order is lost so, as nothing else depends on when it lands,
    and it is on its way, and may harm, as long as it can be.
    """

    program: Program
    names: list[str] = field(init=False)
    steps: list[list[list[Operation]]] = field(init=False)
    barrier_at: dict[str, int] = field(init=False)
    buffer_at: dict[str, int] = field(init=False)
    refilled: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = list(self.program.agents)
        self.steps = [_steps(operations) for operations in self.program.agents.values()]
        self.barrier_at = {name: at for at, name in enumerate(self.program.barriers)}
        copies = [o.buffer for agent in self.program.agents.values() for o in agent if isinstance(o, Copy)]
        reads = [o.buffer for agent in self.program.agents.values() for o in agent if isinstance(o, Load | Read)]
        self.buffer_at = {name: at for at, name in enumerate(dict.fromkeys([*copies, *reads]))}
        self.refilled = frozenset(name for name in copies if copies.count(name) > 1)

    def start(self) -> State:
        barriers = tuple(Barrier(count, count) for count in self.program.barriers.values())
        return State(barriers, (Buffer(),) * len(self.buffer_at), (0,) * len(self.names))

    def following(self, state: State) -> list[State]:
        """After one step of any agent that can make one."""
        found = []
        for agent in range(len(self.names)):
            after = self.step(state, agent)
            if after is not None:
                found.append(after)
        if not found and any(at < len(steps) for at, steps in zip(state.at, self.steps, strict=True)):
            waits = [
                f"{name}: {steps[at][0]}"
                for name, at, steps in zip(self.names, state.at, self.steps, strict=True)
                if at < len(steps)
            ]
            raise ProtocolError("deadlock: " + "; ".join(waits))
        return found

    def step(self, state: State, agent: int) -> State | None:
        """None if it waits, or is at its end."""
        at = state.at[agent]
        if at == len(self.steps[agent]):
            return None
        barriers, buffers = list(state.barriers), list(state.buffers)
        for operation in self.steps[agent][at]:
            if isinstance(operation, Wait):
                where = self.barrier_at[operation.barrier]
                if not barriers[where].ended(operation.parity):
                    self._land(operation.barrier, barriers, buffers)
                    if not barriers[where].ended(operation.parity):
                        return None
            else:
                self._do(operation, self.names[agent], barriers, buffers)
        moved = (*state.at[:agent], at + 1, *state.at[agent + 1 :])
        return State(tuple(barriers), tuple(buffers), moved)

    def _land(self, barrier: str, barriers: list[Barrier], buffers: list[Buffer]) -> None:
        for index, buffer in enumerate(buffers):
            if buffer.copying is not None and buffer.copying[0] == barrier:
                buffers[index] = replace(buffer, copying=None)
                barriers[self.barrier_at[barrier]] = barriers[self.barrier_at[barrier]].land(buffer.copying[1])

    def _do(self, operation: Operation, agent: str, barriers: list[Barrier], buffers: list[Buffer]) -> None:
        match operation:
            case Arrive(name, num_bytes):
                barriers[self.barrier_at[name]] = barriers[self.barrier_at[name]].arrive(num_bytes)
            case Copy(name, barrier, num_bytes):
                buffers[self.buffer_at[name]] = self._copied(name, buffers[self.buffer_at[name]], barrier, num_bytes)
            case Store(name):
                if buffers[self.buffer_at[name]] != Buffer():
                    raise ProtocolError(f"{name}: written from registers when it is in use")
                buffers[self.buffer_at[name]] = Buffer(num_copies=1)
            case Load(name):
                self._do(Read(name), agent, barriers, buffers)
                self._do(Done((name,)), agent, barriers, buffers)
            case Read(name):
                buffers[self.buffer_at[name]] = self._read(name, buffers[self.buffer_at[name]], agent)
            case Done(names):
                for name in names:
                    buffer = buffers[self.buffer_at[name]]
                    buffers[self.buffer_at[name]] = replace(
                        buffer, readers=buffer.readers - {agent}, seen=buffer.seen | {agent}
                    )
            case _:
                raise AssertionError(operation)

    def _copied(self, name: str, buffer: Buffer, barrier: str, num_bytes: int) -> Buffer:
        if buffer.copying is not None:
            raise ProtocolError(f"{name}: two copies at a time")
        if buffer.readers:
            raise ProtocolError(f"{name}: written while {sorted(buffer.readers)} read it")
        if buffer.num_copies and len(buffer.seen) < self.program.sharers:
            raise ProtocolError(f"{name}: written anew before all have read it")
        return Buffer(buffer.num_copies + 1, (barrier, num_bytes))

    def _read(self, name: str, buffer: Buffer, agent: str) -> Buffer:
        if not buffer.num_copies:
            raise ProtocolError(f"{name}: read before it was written")
        if buffer.copying is not None:
            raise ProtocolError(f"{name}: read while it is written")
        if name in self.refilled and agent in buffer.readers | buffer.seen:
            raise ProtocolError(f"{name}: {agent} reads one content twice")
        return replace(buffer, readers=buffer.readers | {agent})

    def check_end(self, state: State) -> None:
        """Everything that was fetched was read, by all who share it."""
        for name, at in self.buffer_at.items():
            buffer = state.buffers[at]
            if buffer.copying is not None or buffer.readers:
                raise ProtocolError(f"{name}: in use at the end")
            if len(buffer.seen) < (self.program.sharers if name in self.refilled else 1):
                raise ProtocolError(f"{name}: its last content was not read by all")


def _steps(operations: Sequence[Operation]) -> list[list[Operation]]:
    steps: list[list[Operation]] = []
    for operation in operations:
        if isinstance(operation, Wait | Done) or not steps:
            steps.append([])
        steps[-1].append(operation)
    return steps


def explore(program: Program) -> int:
    """Every interleaving of a program; the number of states in which it can be. Raises ProtocolError."""
    explorer = _Explorer(program)
    waiting = [explorer.start()]
    known = set(waiting)
    while waiting:
        state = waiting.pop()
        following = explorer.following(state)
        if not following:
            explorer.check_end(state)
        for after in following:
            if after not in known:
                known.add(after)
                waiting.append(after)
    return len(known)
