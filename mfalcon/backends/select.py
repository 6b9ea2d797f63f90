"""A model that is ready to serve: its backend, and the pages on which its KV states live."""

from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import torch

from kernels.cpu.library import Kernel
from kernels.gpu import check as gpu_check
from mfalcon.backends.base import DEVICE_MICROBATCH, ReferenceBackend, StackBackend
from mfalcon.backends.choice import AUTO, FUSED, ON_DEVICE, REFERENCE, TRITON_PLAIN, BackendUnavailable, Choice, choose
from mfalcon.backends.events import ServedEvents, serve_events
from mfalcon.backends.fused import FusedBackend
from mfalcon.backends.lookup import settle_items
from mfalcon.errors import ConfigError
from mfalcon.kvcache.state import KVPool, KVState, Layout, PlainLayout
from mfalcon.models.base import EventRanker, PrefixRanker, Ranker, prefix_ranker
from mfalcon.models.readout import TargetReadout, readout_of

FP8_PRODUCTS: Final = "fp8-products"
KV_DTYPES: Final = {
    "auto": None,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
    FP8_PRODUCTS: torch.float8_e4m3fn,
}
"""Types of K and V on pages by name: that of the computation, or 8-bit codes. FP8_PRODUCTS: of which targets' attention
makes products as they are, on devices that can (`kernels.fp8_reference`).
"""
_DEVICE_SHARE = 0.8
"""Of a device's free memory that is the pool's if nothing else is said; the rest is for activations and graphs."""
_SIMULATED_BYTES = 64 << 20
"""Of a device that is the CPU: the kernels' interpreter."""
_OFFLINE_WINDOWS = 16


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model, what computes its stack, and where its states live. unavailable: backends that cannot run here, why.

    host: pages in host memory for states that leave the pool of a device; None where the pool is the host's. budget: of
    the pools, None if they were made without one. kernel: of float32, for the model's end. readout: that end.
    """

    model: PrefixRanker
    stack: StackBackend
    pool: KVPool
    unavailable: tuple[str, ...] = ()
    host: KVPool | None = None
    budget: "PoolBudget | None" = None
    kernel: Kernel | None = None
    readout: TargetReadout = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "readout", readout_of(self.model, self.kernel))

    @property
    def name(self) -> str:
        """Of what computes, as it is reported and asked for (mfalcon.backends.choice)."""
        return self.stack.name

    @property
    def batched(self) -> bool:
        """Whether users are better computed together than one after the other."""
        return self.stack.batched

    def can_share(self, layout: Layout, budget: "PoolBudget | None") -> bool:
        """Whether a model of this layout and budget needs no pools beside these."""
        return budget is not None and self.budget == budget and self.pool.layout == layout

    def empty_state(self) -> KVState:
        """The state of an empty history."""
        return self.pool.empty()


Served: TypeAlias = ServedModel | ServedEvents
"""A model of either kind, ready to serve."""


@dataclass(frozen=True, slots=True)
class PoolBudget:
    """Memory of a pool: for states that are kept, and for what is in flight beside them. longest: window, in tokens.

    device_bytes: of the pool of a device, 0 for most of what is free there; kept_bytes are the host's then.
    """

    kept_bytes: int
    threads: int
    longest: int
    device_bytes: int = 0

    def pool(self, layout: Layout, *, pinned: bool = False) -> KVPool:
        """A pool of so much memory. Raises ConfigError if there is not so much.

        In flight are a state that is being made, one that it replaces and one that is being written elsewhere, of full
        windows; and of each thread that has a small request a few pages.
        """
        reserved = 3 * self._pages(layout) + 4 * self.threads
        return _allocated("kv_budget_mb", layout, self.kept_bytes // layout.page_bytes + reserved, reserved, pinned)

    def device_pool(self, layout: Layout, workspace: int = 0) -> KVPool:
        """A pool on a device, of what graphs and activations leave of the budget; workspace: bytes that they take.
        Raises ConfigError if it could not hold three full windows.
        """
        free = self.device_bytes or free_bytes(layout.shape.device)
        num_pages, needed = max(0, free - workspace) // layout.page_bytes, 3 * self._pages(layout)
        if num_pages < needed:
            least = -(-(needed * layout.page_bytes + workspace) >> 20)
            beside = f" beside {-(-workspace >> 20)} MiB of graphs and activations" if workspace else ""
            raise ConfigError(
                f"device_budget_mb: got {free >> 20} MiB, must be at least {least} for three full windows{beside}"
            )
        return _allocated("device_budget_mb", layout, num_pages, needed, False)

    def _pages(self, layout: Layout) -> int:
        """Those of a full window, the last one begun."""
        return -(-self.longest // layout.page_tokens) + 1


def serve(
    model: Ranker,
    backend: str = AUTO,
    budget: PoolBudget | None = None,
    kv_dtype: str = "auto",
    predecessor: ServedModel | None = None,
) -> ServedModel:
    """Make a model ready. Without a budget its pool grows as it must, or on a device holds some full windows.

    kv_dtype: of its pages (KV_DTYPES). predecessor: a model whose pools this one shares instead of having its own, if
    their pages lie alike and its budget is the same. Raises ConfigError for a backend that cannot run here, or that has
    no such pages, and for a model that encodes no history.
    """
    model = prefix_ranker(model)
    shape = model.kv_shape()
    if kv_dtype not in KV_DTYPES:
        raise ConfigError(f"kv_dtype: got {kv_dtype!r}, must be one of {', '.join(KV_DTYPES)}")
    try:
        choice = choose(backend, shape.device, shape.dtype)
    except BackendUnavailable as error:
        raise ConfigError(str(error)) from error
    settle_items(model, choice)
    stack = (_on_device if choice.name in ON_DEVICE else _backend)(choice, model, kv_dtype)
    if predecessor is not None and predecessor.can_share(stack.layout, budget):
        return replace(predecessor, model=model, stack=stack, unavailable=choice.unavailable, kernel=_float32(choice))
    pool, host = _pools(model, stack, budget)
    return ServedModel(model, stack, pool, choice.unavailable, host, budget, _float32(choice))


def serve_any(
    model: Ranker,
    backend: str = AUTO,
    budget: PoolBudget | None = None,
    kv_dtype: str = "auto",
    predecessor: Served | None = None,
) -> Served:
    """`serve` for a model of either kind: one without a KV state needs no budget, and has no pages of any type."""
    if isinstance(model, EventRanker):
        try:
            return serve_events(model, backend)
        except BackendUnavailable as error:
            raise ConfigError(str(error)) from error
    return serve(model, backend, budget, kv_dtype, predecessor if isinstance(predecessor, ServedModel) else None)


def device_named(name: str, setting: str = "device") -> torch.device:
    """A device of this machine. Raises ConfigError for one that it lacks; setting: who asked for it."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{setting}: got {name!r}, must be cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{setting}: got {name!r}, must be cpu, cuda or cuda:N")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ConfigError(f"{setting}: got {name!r}, but torch finds {found} CUDA devices here")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def use_device(device: torch.device) -> None:
    """Have the calling thread launch its kernels on a device: Triton asks the thread, not the tensors."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def reference(model: Ranker) -> ServedModel:
    """The model on the reference backend: the oracle of every other one."""
    return serve(model, REFERENCE)


def any_reference(model: Ranker) -> Served:
    """`reference` for a model of either kind."""
    return serve_any(model, REFERENCE)


def _backend(choice: Choice, model: PrefixRanker, kv_dtype: str) -> StackBackend:
    if KV_DTYPES[kv_dtype] == torch.float8_e4m3fn:
        raise ConfigError(
            f"kv_dtype: got {kv_dtype}, must be auto or int8 where triton does not compute (it is {choice.name})"
        )
    if choice.kernel is not None:
        return FusedBackend(choice.kernel, model.stack, model.kv_shape(), int8=kv_dtype == "int8")
    if kv_dtype == "int8":
        why = "; ".join(choice.unavailable) or f"backend is {choice.name}"
        raise ConfigError(f"kv_dtype: got int8, must be auto where no fused kernel computes ({why})")
    return ReferenceBackend(model.stack, model.kv_shape())


def _float32(choice: Choice) -> Kernel | None:
    """A kernel of float32 for what never computes below it, where the layers have a fused kernel."""
    if choice.kernel is None or choice.kernel.dtype == torch.float32:
        return choice.kernel
    try:
        return choose(FUSED, torch.device("cpu"), torch.float32).kernel
    except BackendUnavailable:
        return None


def workspace_of(stack: StackBackend) -> int:
    """Bytes of a device's memory for graphs and activations, beside weights and pages; 0 where they are the host's."""
    return stack.workspace_bytes(DEVICE_MICROBATCH) if stack.layout.shape.device.type == "cuda" else 0


def _on_device(choice: Choice, model: PrefixRanker, kv_dtype: str) -> StackBackend:
    layer, _ = model.config.stack
    if layer.attention == "softmax" and any(of is not None for of in model.config.reach or ()):
        raise ConfigError(f"backend {choice.name}: softmax with a reach must be computed by reference")
    if layer.attention == "softmax" and kv_dtype == FP8_PRODUCTS:
        raise ConfigError(f"kv_dtype: got {kv_dtype}, must be auto, int8 or fp8 with softmax attention")
    if layer.attention == "softmax" or layer.rope is not None:
        shape = model.kv_shape()
        try:
            gpu_check.check(shape.device, shape.dtype, softmax=True)
        except gpu_check.GpuUnavailable as error:
            raise ConfigError(f"backend {choice.name}: with softmax or rope {error}") from error
    from mfalcon.backends.triton import TritonBackend  # noqa: PLC0415 (triton is an extra)

    plain, transposed = choice.name == TRITON_PLAIN, kv_dtype == FP8_PRODUCTS
    return TritonBackend(model.stack, model.kv_shape(), KV_DTYPES[kv_dtype], plain=plain, transposed=transposed)


def _pools(model: PrefixRanker, stack: StackBackend, budget: PoolBudget | None) -> tuple[KVPool, KVPool | None]:
    """A pool to compute in; Triton's is on the device, and with a budget has one in host memory of the same pages."""
    layout = stack.layout
    if stack.name not in ON_DEVICE:
        return budget.pool(layout) if budget else KVPool(layout), None
    if budget is None:
        longest = -(-model.config.max_history * model.tokens_per_event // layout.page_tokens) + 1
        return KVPool(layout, _OFFLINE_WINDOWS * longest), None
    assert isinstance(layout, PlainLayout)
    of_host = replace(layout, shape=replace(layout.shape, device=torch.device("cpu")))
    on_cuda = layout.shape.device.type == "cuda"
    return budget.device_pool(layout, workspace_of(stack)), budget.pool(of_host, pinned=on_cuda)


def _allocated(setting: str, layout: Layout, num_pages: int, reserved: int, pinned: bool) -> KVPool:
    try:
        return KVPool(layout, num_pages, reserved, pinned=pinned)
    except (RuntimeError, MemoryError) as error:
        raise ConfigError(
            f"{setting}: {num_pages * layout.page_bytes >> 20} MiB of pages ({reserved} of {num_pages} for requests in "
            f"flight) cannot be allocated: {error}"
        ) from error


def free_bytes(device: torch.device) -> int:
    """What a pool may take of a device."""
    if device.type != "cuda":
        return _SIMULATED_BYTES
    return int(_DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])
