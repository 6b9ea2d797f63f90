"""A model that is ready to serve: its backend, and the pages on which its KV states live."""

from dataclasses import dataclass

from kernels.choice import AUTO, ONEDNN, REFERENCE, BackendUnavailable, Choice, choose
from mfalcon.errors import ConfigError
from mfalcon.kv import KVPool, KVState, Layout
from mfalcon.models.backend import ReferenceBackend, StackBackend
from mfalcon.models.base import Ranker
from mfalcon.models.cpu import FusedBackend, OneDnnBackend


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model, what computes its stack, and where its states live. passed_over: backends that cannot run here, why."""

    model: Ranker
    stack: StackBackend
    pool: KVPool
    passed_over: tuple[str, ...] = ()

    def empty_state(self) -> KVState:
        """The state of an empty history."""
        return self.pool.empty()


@dataclass(frozen=True, slots=True)
class PoolBudget:
    """Memory of a pool: for states that are kept, and for what is in flight beside them. longest_history: in events."""

    kept_bytes: int
    threads: int
    longest_history: int

    def pool(self, layout: Layout, tokens_per_event: int) -> KVPool:
        """A pool of so much memory. Raises ConfigError if there is not so much.

        In flight are a state that is being made, one that it replaces and one that is being written elsewhere, of full
        windows; and of each thread that has a small request a few pages.
        """
        longest = -(-self.longest_history * tokens_per_event // layout.page_tokens) + 1
        reserved = 3 * longest + 4 * self.threads
        num_pages = self.kept_bytes // layout.page_bytes + reserved
        try:
            return KVPool(layout, num_pages, reserved)
        except (RuntimeError, MemoryError) as error:
            raise ConfigError(
                f"kv_budget_mb: {num_pages * layout.page_bytes >> 20} MiB of pages ({reserved} of {num_pages} for "
                f"requests in flight) cannot be allocated: {error}"
            ) from error


def serve(model: Ranker, backend: str = AUTO, budget: PoolBudget | None = None, *, int8: bool = False) -> ServedModel:
    """Make a model ready. Without a budget its pool grows as it must. int8: KV pages of 8-bit codes.

    Raises ConfigError for a backend that cannot run here, or that has no pages of the asked kind.
    """
    shape = model.kv_shape()
    try:
        choice = choose(backend, shape.device, shape.dtype)
    except BackendUnavailable as error:
        raise ConfigError(str(error)) from error
    if int8 and choice.kernel is None:
        why = "; ".join(choice.passed_over) or f"backend is {choice.name}"
        raise ConfigError(f"kv_dtype: got int8, must be auto where no fused kernel computes ({why})")
    stack = _backend(choice, model, int8=int8)
    pool = budget.pool(stack.layout, model.tokens_per_event) if budget else KVPool(stack.layout)
    return ServedModel(model, stack, pool, choice.passed_over)


def reference(model: Ranker) -> ServedModel:
    """The model on the reference backend: the oracle of every other one."""
    return serve(model, REFERENCE)


def _backend(choice: Choice, model: Ranker, *, int8: bool) -> StackBackend:
    if choice.kernel is not None:
        return FusedBackend(choice.kernel, model.stack, model.kv_shape(), int8=int8)
    if choice.name == ONEDNN:
        return OneDnnBackend(model.stack, model.kv_shape())
    return ReferenceBackend(model.stack, model.kv_shape())
