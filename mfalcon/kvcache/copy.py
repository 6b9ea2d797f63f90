"""KV states from the host's pool to the device's and back, beside the computation.

A promotion returns at once: a thread queues it, and its state is used while its pages still arrive, layer by layer. A
demotion is whole when it returns, and copies what an older state in the host's pool lacks. Both copy pages as they are,
so the two pools have the same pages, and those of a copy are of its original's size. What is being copied is held until
it is there, so its pages are nobody else's.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kernels.paged import to_device
from mfalcon.errors import EngineFailure
from mfalcon.kvcache.state import KVPool, KVState, PlainLayout

_log = logging.getLogger(__name__)


class Mark(Protocol):
    """A moment of what a thread has computed."""

    def wait(self) -> None:
        """Have what the calling thread computes next wait until that moment has come."""
        ...


class Copier(Protocol):
    """Copies states between two pools, by whatever the device has for it."""

    def promote(self, state: KVState, pool: KVPool) -> KVState:
        """The same tokens on pages of a device's pool, still arriving. On the device thread. Raises Overloaded."""
        ...

    def mark(self) -> Mark:
        """The moment at which all that the calling thread has computed so far stands in memory."""
        ...

    def demote(self, state: KVState, pool: KVPool, mark: Mark, onto: KVState | None = None) -> KVState:
        """The same tokens on pages of the host's pool; not on the device thread.

        mark: of the device thread, when the state was made. onto: an older state of that pool of the first of these
        tokens; it stays as it is, and only the tokens behind it are copied. Raises Overloaded; leaves the pool's
        reserve free.
        """
        ...

    def idle(self) -> None:
        """Return when nothing is on its way any more and its pages are let go."""
        ...

    def close(self) -> None:
        """Wait for what is on its way and end."""
        ...


class CudaCopier:
    """Copies on a CUDA device: a stream each way beside the computation's. The host's pool must be pinned: a kernel
    brings a layer of all pages up at once.

    Not while a CUDA graph is captured: events are asked and waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._to_device, self._to_host = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self._thread = ThreadPoolExecutor(1, "mfalcon-promotions")
        self._held = _Held()

    def promote(self, state: KVState, pool: KVPool) -> KVState:
        """See `Copier`. Waits on the device for what the calling thread has queued: it may still read pages that have
        just become free.
        """
        transfer = _transfer(state, _room_for(state, pool), 0)
        arrival = _StreamArrival(transfer.layout.shape.num_layers)
        self._thread.submit(self._bring, transfer, arrival, self.mark())
        return replace(transfer.target, arrival=arrival)

    def mark(self) -> Mark:
        """See `Copier`."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def demote(self, state: KVState, pool: KVPool, mark: Mark, onto: KVState | None = None) -> KVState:
        """See `Copier`."""
        older = _older(onto, state, pool)
        transfer = _transfer(state, _longer(older, state), older.num_tokens)
        with torch.inference_mode(), torch.cuda.stream(self._to_host):
            mark.wait()
            try:
                transfer.copy_all()
            finally:
                _recorded().synchronize()
            transfer.finish()
        return transfer.target

    def idle(self) -> None:
        """See `Copier`."""
        self._thread.submit(int).result()
        self._held.idle()

    def close(self) -> None:
        """See `Copier`."""
        self._thread.shutdown()
        self._held.close()

    def _bring(self, transfer: "_Transfer", arrival: "_StreamArrival", mark: Mark) -> None:
        """Queue a launch for each layer, with the first one the times."""
        from kernels.gpu.page_copy import page_copy  # noqa: PLC0415 (triton is an extra)

        source, target, layout = transfer.source, transfer.target, transfer.layout
        size = layout.page_tokens
        with torch.inference_mode(), torch.cuda.stream(self._to_device):
            try:
                mark.wait()
                pairs = np.array([source.run.pages, target.run.pages], dtype=np.int32).T.copy()
                where = to_device(pairs, target.pool.slab.device)
                for layer in range(layout.shape.num_layers):
                    if source.arrival is not None:
                        source.arrival.wait(1 + layer)
                    part = layout.layer_bytes(layer)
                    part = part if layer else slice(0, part.stop)
                    page_copy(source.pool.slab_of(size), target.pool.slab_of(size), where, part)
                    arrival.queued(_recorded())
            except Exception as error:  # noqa: BLE001 (the thread's edge: who waits must be answered)
                _log.exception("a state could not be copied")
                arrival.failed(f"a state could not be copied: {error}")
            finally:
                self._held.hold(_recorded(), transfer)


class ThreadCopier:
    """A thread in place of a copy engine, where both pools are the CPU's: for tests, and to try what a GPU will do.

    delay_s: seconds before each part that is promoted. before_part: called there, in the copying thread.
    """

    def __init__(self, delay_s: float = 0.0, before_part: Callable[[int], None] | None = None) -> None:
        self._delay_s = delay_s
        self._before_part = before_part
        self._thread = ThreadPoolExecutor(1, "mfalcon-copies")

    def promote(self, state: KVState, pool: KVPool) -> KVState:
        """See `Copier`."""
        transfer = _transfer(state, _room_for(state, pool), 0)
        arrival = _ThreadArrival(transfer.num_parts)
        self._thread.submit(self._copy, transfer, arrival)
        return replace(transfer.target, arrival=arrival)

    def mark(self) -> Mark:
        """See `Copier`; what a CPU has computed is there."""
        return _Now()

    def demote(self, state: KVState, pool: KVPool, mark: Mark, onto: KVState | None = None) -> KVState:
        """See `Copier`."""
        older = _older(onto, state, pool)
        transfer = _transfer(state, _longer(older, state), older.num_tokens)
        mark.wait()
        with torch.inference_mode():
            transfer.copy_all()
            transfer.finish()
        return transfer.target

    def idle(self) -> None:
        """See `Copier`."""
        self._thread.submit(int).result()

    def close(self) -> None:
        """See `Copier`."""
        self._thread.shutdown()

    def _copy(self, transfer: "_Transfer", arrival: "_ThreadArrival") -> None:
        try:
            with torch.inference_mode():
                for part in range(transfer.num_parts):
                    if self._delay_s:
                        time.sleep(self._delay_s)
                    if self._before_part is not None:
                        self._before_part(part)
                    transfer.copy(part)
                    arrival.came(part)
        except Exception as error:  # noqa: BLE001 (the thread's edge: who waits must be answered)
            _log.exception("a state could not be copied")
            arrival.failed(f"a state could not be copied: {error}")


def copier_of(device: torch.device) -> Copier:
    """What copies states between the host and a device; a thread where the CPU plays the device."""
    return CudaCopier(device) if device.type == "cuda" else ThreadCopier()


@dataclass(frozen=True, slots=True)
class _Transfer:
    """What is copied where. pages: (from, to), uint8 [page_bytes] each.

    partial: a page of which only the token slots [first, stop) are copied, because the others are an older state's:
    (where all of it is put meanwhile, the page, first, stop).
    """

    source: KVState
    target: KVState
    layout: PlainLayout
    pages: Sequence[tuple[Tensor, Tensor]]
    partial: tuple[Tensor, Tensor, int, int] | None

    @property
    def num_parts(self) -> int:
        """Times, and each layer."""
        return 1 + self.layout.shape.num_layers

    def copy(self, part: int) -> None:
        """Copy a part of every page once it is there."""
        if self.source.arrival is not None:
            self.source.arrival.wait(part)
        where = self.layout.layer_bytes(part - 1) if part else slice(8 * self.layout.page_tokens)
        for source, target in self.pages:
            target[where].copy_(source[where], non_blocking=True)

    def copy_all(self) -> None:
        """Copy every page as one once all of it is there."""
        if self.source.arrival is not None:
            self.source.arrival.wait(self.layout.shape.num_layers)
        for source, target in self.pages:
            target.copy_(source, non_blocking=True)

    def finish(self) -> None:
        """Copy what goes in part, once all else is there: memory of the host both."""
        if self.partial is None:
            return
        source, target, first, stop = self.partial
        self.layout.times(target)[first:stop] = self.layout.times(source)[first:stop]
        for layer in range(self.layout.shape.num_layers):
            for old, new in zip(self.layout.blocks(source, layer), self.layout.blocks(target, layer), strict=True):
                if old is not None and new is not None:
                    new[:, first:stop] = old[:, first:stop]


def _room_for(state: KVState, pool: KVPool) -> KVState:
    """Pages of another pool for all of a state."""
    return pool.empty().grown(state.num_tokens, page_tokens=state.run.page_tokens)


def _older(onto: KVState | None, state: KVState, pool: KVPool) -> KVState:
    """What is in the other pool already and need not be copied; nothing if its pages are of another size."""
    if onto is None or onto.run.page_tokens != state.run.page_tokens:
        return pool.empty()
    assert onto.pool is pool and onto.num_tokens <= state.num_tokens
    return onto


def _longer(older: KVState, state: KVState) -> KVState:
    """The older state with room for the other tokens of the newer one."""
    pool, num_new = older.pool, state.num_tokens - older.num_tokens
    return older.grown(num_new, pool.reserved, state.run.page_tokens)


def _transfer(source: KVState, target: KVState, first: int) -> _Transfer:
    """Of the tokens from `first` on; what is in front of them stands in the target."""
    layout = _common_layout(source, target)
    full, slot = divmod(first, layout.page_tokens)
    pages, partial = list(zip(source.pages, target.pages, strict=True))[full:], None
    if slot and first < target.num_tokens:
        staging = torch.empty(layout.page_bytes, dtype=torch.uint8, pin_memory=target.pool.pinned)
        stop = min(target.num_tokens - full * layout.page_tokens, layout.page_tokens)
        (taken, shared), *rest = pages
        pages, partial = [(taken, staging), *rest], (staging, shared, slot, stop)
    return _Transfer(source, target, layout, pages if first < target.num_tokens else [], partial)


def _common_layout(one: KVState, other: KVState) -> PlainLayout:
    layout, others = one.layout, other.layout
    assert isinstance(layout, PlainLayout) and isinstance(others, PlainLayout)
    assert replace(layout, shape=replace(layout.shape, device=others.shape.device)) == others
    return layout


class _Now:
    def wait(self) -> None:
        pass


class _ThreadArrival:
    """Parts that another thread copies."""

    def __init__(self, num_parts: int) -> None:
        self._came = [threading.Event() for _ in range(num_parts)]
        self._failure: str | None = None

    def wait(self, part: int) -> None:
        self._came[part].wait()
        if self._failure is not None:
            raise EngineFailure(self._failure)

    @property
    def done(self) -> bool:
        return self._came[-1].is_set() and self._failure is None

    def came(self, part: int) -> None:
        self._came[part].set()

    def failed(self, failure: str) -> None:
        self._failure = failure
        for event in self._came:
            event.set()


class _StreamArrival:
    """Layers that a stream copies, times with the first one; an event behind each, once a thread has queued it."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._events: list[torch.cuda.Event] = []
        self._changed = threading.Condition()
        self._failure: str | None = None
        self._done = False

    def wait(self, part: int) -> None:
        layer = max(part - 1, 0)
        if self.done:
            return
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) > layer or self._failure is not None)
        if self._failure is not None:
            raise EngineFailure(self._failure)
        self._events[layer].wait()

    @property
    def done(self) -> bool:
        if not self._done:
            events = self._events
            self._done = len(events) == self._num_layers and self._failure is None and events[-1].query()
        return self._done

    def queued(self, event: torch.cuda.Event) -> None:
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def failed(self, failure: str) -> None:
        with self._changed:
            self._failure = failure
            self._changed.notify_all()


class _Held:
    """Keeps what a stream copies until an event behind it: a thread waits, and lets go as soon as it may."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[torch.cuda.Event, _Transfer] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="mfalcon-copies", daemon=True)
        self._thread.start()

    def hold(self, event: torch.cuda.Event, transfer: _Transfer) -> None:
        self._queue.put((event, transfer))

    def idle(self) -> None:
        self._queue.join()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (held := self._queue.get()) is not None:
            try:
                held[0].synchronize()
            except RuntimeError:  # the device is lost: the device thread says so
                _log.exception("a copy to the device failed")
            del held
            self._queue.task_done()


def _recorded() -> torch.cuda.Event:
    """An event behind what the current stream has queued; who waits for it on the CPU sleeps."""
    event = torch.cuda.Event(blocking=True)
    event.record()
    return event
