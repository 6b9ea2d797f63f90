"""A machine that runs the Hopper kernels' own Python code, without their compiler and without a device.

Neither Triton's interpreter nor a CPU can run Gluon. Here the functions of a kernel run as plain Python: the names of
Gluon's language stand for what they mean, on torch tensors; producer and consumers are threads, one of which runs at a
time, in an order drawn by chance; a copy lands some time after it was begun. What each of them does at barriers and
buffers is recorded for `tests.kernels.hopper_protocol`.
"""

import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gluon_language
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime.jit import JITFunction

from tests.kernels.hopper_protocol import (
    Arrive,
    Barrier,
    Copy,
    Done,
    Load,
    Operation,
    Program,
    ProtocolError,
    Read,
    Store,
    Wait,
)


class _Abandoned(BaseException):
    """Another agent has failed."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """flat: all numbers from the tensor's first on. offset: of one or many."""

    flat: Tensor
    offset: Tensor

    def __add__(self, by: Tensor | int) -> "Pointer":
        return Pointer(self.flat, self.offset + by)


def _pointer(x: Tensor) -> Pointer:
    size = x.untyped_storage().size() // x.dtype.itemsize - x.storage_offset()
    return Pointer(torch.as_strided(x, (size,), (1,)), torch.tensor(0))


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A tensor descriptor in the kernel."""

    tensor: Tensor
    block: tuple[int, ...]
    layout: object = None

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def block_type(self) -> SimpleNamespace:
        return SimpleNamespace(shape=self.block, nbytes=torch.Size(self.block).numel() * self.dtype.itemsize)

    def at(self, where: list[Any]) -> Tensor:
        """A block; what lies outside of the tensor is zero."""
        out = torch.zeros(self.block, dtype=self.dtype)
        spans = []
        for first, extent, size in zip(map(int, where), self.block, self.tensor.shape, strict=True):
            low, high = min(max(first, 0), size), max(min(first + extent, size), 0)
            spans.append((low, max(low, high), first))
        inside = tuple(slice(low, high) for low, high, _ in spans)
        out[tuple(slice(low - first, high - first) for low, high, first in spans)] = self.tensor[inside]
        return out


@dataclass(slots=True)
class Memory:
    """A buffer in shared memory; poison until something is copied into it. used: told what is done to it."""

    name: str
    content: Tensor
    used: Callable[[Operation], None]


@dataclass(frozen=True, slots=True)
class View:
    """Of one buffer."""

    memory: Memory
    shape: tuple[int, ...]
    order: tuple[int, ...] | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.memory.content.dtype

    def reshape(self, shape: list[int]) -> "View":
        return View(self.memory, tuple(shape))

    def permute(self, order: list[int]) -> "View":
        return View(self.memory, self.shape, tuple(order))

    def load(self, layout: object) -> Tensor:
        self.memory.used(Load(self.memory.name))
        return self.value().clone()

    def store(self, value: Tensor) -> None:
        self.memory.used(Store(self.memory.name))
        self.memory.content.copy_(value)

    def value(self) -> Tensor:
        content = self.memory.content.reshape(self.shape)
        return content if self.order is None else content.permute(self.order)


@dataclass(frozen=True, slots=True)
class Buffers:
    """An allocation of several, by their first dimension."""

    parts: tuple[Memory, ...]
    dtype: torch.dtype

    def index(self, at: int) -> View:
        return View(self.parts[int(at)], tuple(self.parts[int(at)].content.shape))


@dataclass(frozen=True, slots=True)
class Barriers:
    """Names of several barriers."""

    names: tuple[str, ...]

    def index(self, at: int) -> str:
        return self.names[int(at)]


@dataclass(slots=True)
class Product:
    """One that runs until its agent has waited for it."""

    value: Tensor
    buffers: tuple[str, ...]
    done: bool = False


@dataclass(slots=True)
class _Agent:
    name: str
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ready: Callable[[], bool] = lambda: True
    products: list[Product] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    ended: bool = False


class Machine:
    """Runs the programs of a grid one by one. changed: functions to run in place of the kernel's own, by name."""

    def __init__(self, seed: int = 0, changed: Mapping[str, Callable[..., Any]] | None = None) -> None:
        self.random = Random(seed)
        self.changed = {**_BITS, **(changed or {})}
        self.programs: list[Program] = []
        self._plain: dict[object, Callable[..., Any]] = {}
        self._place: tuple[int, ...] = ()
        self._grid: tuple[int, ...] = ()
        self._barriers: dict[str, Barrier] = {}
        self._copies: list[tuple[Copy, Memory, Tensor]] = []
        self._agents: list[_Agent] = []
        self._running: _Agent | None = None
        self._back = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._num_buffers = 0

    def wrapper(self, function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
        """The host's function that launches a kernel, so that it launches it here; names: other meanings of its."""
        return self._rebuilt(function, names, launching=True)

    def launch(self, kernel: JITFunction, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        """A kernel over a grid, as its launch from the host would be."""
        options.pop("num_warps", None)
        body, given = self.plain(kernel), [_argument(arg) for arg in args]
        places = [(x, y, z) for x in range(grid[0]) for y in range(grid[1]) for z in range(grid[2])]
        for place in places:
            self._place, self._grid = place, grid
            self._barriers, self._copies, self._agents, self._num_buffers = {}, [], [], 0
            body(*given, **options)

    def plain(self, function: JITFunction) -> Callable[..., Any]:
        """A kernel's function as plain Python."""
        if function not in self._plain:
            name = function.fn.__name__
            self._plain[function] = self._rebuilt(
                self.changed.get(name, function.fn), self._language(), launching=False
            )
        return self._plain[function]

    def _rebuilt(self, function: Any, meant: Mapping[str, Any], *, launching: bool) -> Callable[..., Any]:
        names: dict[str, Any] = {"__builtins__": __builtins__}
        for name, value in function.__globals__.items():
            if name in meant:
                names[name] = meant[name]
            elif isinstance(value, gluon_language.constexpr):
                names[name] = value.value
            elif isinstance(value, JITFunction):
                names[name] = _Launched(self, value) if launching else _Late(self, value)
            else:
                names[name] = value
        return FunctionType(function.__code__, names, function.__name__, function.__defaults__)

    def _language(self) -> dict[str, Any]:
        barriers = SimpleNamespace(
            MBarrierLayout=lambda: "barriers",
            init=self._init,
            wait=self._wait,
            expect=self._expect,
            arrive=self._arrive,
        )
        language = SimpleNamespace(
            **_ARITHMETIC,
            program_id=lambda axis: torch.tensor(self._place[axis], dtype=torch.int32),
            num_programs=lambda axis: torch.tensor(self._grid[axis], dtype=torch.int32),
            allocate_shared_memory=self._allocate,
            warp_specialize=self._specialize,
        )
        return {
            "gl": language,
            "mbarrier": barriers,
            "tma": SimpleNamespace(async_copy_global_to_shared=self._copy),
            "warpgroup_mma": self._product,
            "warpgroup_mma_wait": self._await,
            "fence_async_shared": lambda: None,
        }

    def _allocate(self, dtype: torch.dtype, shape: list[int], layout: object) -> Buffers | Barriers:
        self._num_buffers += 1
        names = tuple(f"{self._num_buffers}.{index}" for index in range(shape[0]))
        if layout == "barriers":
            return Barriers(names)
        content = torch.full(shape, torch.nan, dtype=dtype)
        return Buffers(tuple(Memory(*named, self._record) for named in zip(names, content, strict=True)), dtype)

    def _init(self, barrier: str, count: int) -> None:
        assert barrier not in self._barriers
        self._barriers[barrier] = Barrier(count, count)

    def _wait(self, barrier: str, parity: Any) -> None:
        parity = int(parity)
        self._record(Wait(barrier, parity))
        self._pause(lambda: self._barriers[barrier].ended(parity))

    def _expect(self, barrier: str, num_bytes: int) -> None:
        self._record(Arrive(barrier, num_bytes))
        self._barriers[barrier] = self._barriers[barrier].arrive(num_bytes)

    def _arrive(self, barrier: str) -> None:
        self._record(Arrive(barrier))
        self._pause()
        self._barriers[barrier] = self._barriers[barrier].arrive()

    def _copy(self, descriptor: Descriptor, where: list[Any], barrier: str, view: View) -> None:
        block = descriptor.at(where)
        copy = Copy(view.memory.name, barrier, block.numel() * block.dtype.itemsize)
        self._record(copy)
        view.memory.content.fill_(torch.nan)
        self._copies.append((copy, view.memory, block))
        self._pause()

    def _product(self, a: Any, b: View, acc: Tensor, *, use_acc: bool = True, is_async: bool) -> Product:
        assert is_async
        views = [x for x in (a, b) if isinstance(x, View)]
        for view in views:
            self._record(Read(view.memory.name))
        left, right = ((x.value() if isinstance(x, View) else x).float() for x in (a, b))
        product = Product(left @ right + (acc if use_acc else 0), tuple(view.memory.name for view in views))
        self._current().products.append(product)
        self._pause()
        return product

    def _await(self, outstanding: int, deps: tuple[Product, ...]) -> Any:
        self._pause()
        running = self._current().products
        while len(running) > outstanding:
            product = running.pop(0)
            product.done = True
            self._record(Done(product.buffers))
        if not all(product.done for product in deps):
            raise ProtocolError("a product is used before it was waited for")
        values = tuple(product.value for product in deps)
        return values[0] if len(values) == 1 else values

    def _specialize(
        self, parts: list[tuple[Callable[..., Any], tuple[Any, ...]]], warps: object, registers: object
    ) -> None:
        names = [f"consumer {index}" for index in range(len(parts) - 1)] + ["producer"]
        self._agents = [_Agent(name) for name in names]
        self._error = None
        threads = [
            threading.Thread(target=self._run, args=(agent, function, args), daemon=True)
            for agent, (function, args) in zip(self._agents, parts, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            self._schedule()
        finally:
            self._error = self._error or _Abandoned()
            for agent in self._agents:
                agent.turn.release()
            for thread in threads:
                thread.join()
            self._running = None
        counts = {name: barrier.count for name, barrier in self._barriers.items()}
        self.programs.append(Program(counts, {agent.name: agent.operations for agent in self._agents}))

    def _schedule(self) -> None:
        while not all(agent.ended for agent in self._agents):
            choices: list[_Agent | int] = [a for a in self._agents if not a.ended and a.ready()]
            choices += range(len(self._copies))
            if not choices:
                waits = {agent.name: agent.operations[-1] for agent in self._agents if not agent.ended}
                raise ProtocolError(f"deadlock: {waits}")
            choice = self.random.choice(choices)
            if isinstance(choice, int):
                copy, memory, block = self._copies.pop(choice)
                memory.content.copy_(block)
                self._barriers[copy.barrier] = self._barriers[copy.barrier].land(copy.num_bytes)
                continue
            self._running = choice
            choice.turn.release()
            self._back.acquire()
            if self._error is not None:
                raise self._error

    def _run(self, agent: _Agent, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        agent.turn.acquire()
        try:
            if self._error is None:
                function(*args)
        except _Abandoned:
            return
        except BaseException as error:  # noqa: BLE001 (raised again where the kernel was launched)
            self._error = error
        agent.ended = True
        self._back.release()

    def _pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others go on; return when it is this agent's turn and it is ready."""
        agent = self._current()
        agent.ready = ready
        self._back.release()
        agent.turn.acquire()
        if self._error is not None:
            raise _Abandoned

    def _record(self, operation: Operation) -> None:
        self._current().operations.append(operation)

    def _current(self) -> _Agent:
        assert self._running is not None, "outside of warp_specialize"
        return self._running


@dataclass(frozen=True, slots=True)
class _Late:
    """A kernel's function that another one calls; translated when it is."""

    machine: Machine
    function: JITFunction

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.machine.plain(self.function)(*args, **options)


@dataclass(frozen=True, slots=True)
class _Launched:
    """A kernel that the host launches."""

    machine: Machine
    function: JITFunction

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **options: self.machine.launch(self.function, grid, *args, **options)


def changed(function: JITFunction, old: str, new: str) -> dict[str, Callable[..., Any]]:
    """A kernel's function with one piece of its source replaced, for `Machine`."""
    source, name = inspect.getsource(function.fn), function.fn.__name__
    assert source.count(old) == 1, f"{source.count(old)} times in {name}: {old}"
    names = dict(function.fn.__globals__)
    exec(source[source.index("def ") :].replace(old, new), names)  # noqa: S102 (a kernel of ours, with one piece changed)
    return {name: names[name]}


def _argument(x: Any) -> Any:
    if isinstance(x, TensorDescriptor):
        base: Tensor = x.base
        return Descriptor(torch.as_strided(base, tuple(x.shape), tuple(x.strides)), tuple(x.block_shape))
    if isinstance(x, Tensor):
        return _pointer(x)
    return torch.tensor(x, dtype=torch.int32 if abs(x) < 2**31 else torch.int64)


def _load(pointer: Pointer, mask: Any = None, other: Any = None) -> Tensor:
    offset = pointer.offset
    if mask is None:
        assert bool((offset >= 0).all()) and bool((offset < len(pointer.flat)).all()), "reads outside"
        return pointer.flat[offset.long()]
    mask, offset = torch.broadcast_tensors(torch.as_tensor(mask), offset)
    chosen = offset[mask]
    assert bool((chosen >= 0).all()) and bool((chosen < len(pointer.flat)).all()), "reads outside"
    return torch.where(mask, pointer.flat[torch.where(mask, offset, 0).long()], torch.tensor(other).to(pointer.flat))


def _store(pointer: Pointer, value: Tensor, mask: Tensor) -> None:
    mask, offset, value = torch.broadcast_tensors(mask, pointer.offset, value)
    pointer.flat[offset[mask].long()] = value[mask].to(pointer.flat.dtype)


def _minimum(x: Any, other: Any) -> Any:
    """Of tensors, or of one and a number."""
    like = x if isinstance(x, Tensor) else other
    return torch.minimum(*(torch.as_tensor(of, dtype=like.dtype) for of in (x, other)))


def _multiple_of(x: Any, size: int) -> Any:
    values = x.offset * x.flat.dtype.itemsize if isinstance(x, Pointer) else torch.as_tensor(x)
    assert bool((values % size == 0).all()), f"not a multiple of {size}"
    return x


def _assembly(text: str, constraints: str, args: list[Tensor], **_: Any) -> Tensor:
    assert text.startswith("tanh.approx.f32")
    return torch.tanh(args[0])


def bits_of(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def number_of(bits: Tensor) -> Tensor:
    return bits.view(torch.float32)


_BITS: dict[str, Callable[..., Any]] = {"bits_of": bits_of, "number_of": number_of}
"""Of `kernels.gpu.hopper.codes`: what torch says in another way."""


def _nothing(*_: Any, **__: Any) -> None:
    return None


_ARITHMETIC: dict[str, Any] = {
    **{name: getattr(torch, name) for name in ("bfloat16", "float16", "float32", "int32", "int64")},
    **{name: _nothing for name in ("NVMMADistributedLayout", "SliceLayout", "DotOperandLayout", "BlockedLayout")},
    "NVMMASharedLayout": _nothing,
    "arange": lambda start, stop, layout: torch.arange(start, stop, dtype=torch.int32),
    "zeros": lambda shape, dtype, layout: torch.zeros(shape, dtype=dtype),
    "static_range": range,
    "minimum": _minimum,
    "maximum": lambda x, other: -_minimum(-x, -other),
    "sum": lambda x, axis: x.sum(axis),
    "min": lambda x, axis: x.amin(axis),
    "max": lambda x, axis: x.amax(axis),
    "where": torch.where,
    "convert_layout": lambda x, layout: x,
    "multiple_of": _multiple_of,
    "load": _load,
    "store": _store,
    "inline_asm_elementwise": _assembly,
}
