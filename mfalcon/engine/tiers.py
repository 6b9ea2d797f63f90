"""The tiers of KV states in this process, put together: the host's alone, or a device's pool in front of it."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from mfalcon.backends.select import ServedModel
from mfalcon.history.history import History
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import StateStore
from mfalcon.kvcache.copy import Copier, CudaCopier, Mark, ThreadCopier
from mfalcon.kvcache.offload import Offload
from mfalcon.kvcache.state import KVState
from mfalcon.kvcache.tier import LruTier
from mfalcon.types import CacheSource

_MAX_WAITING = 64
"""States that wait to be copied to the host, and keep their pages on the device meanwhile."""

OnKeep = Callable[[History, int, KVState], None]


class Tiers:
    """What holds states, from the memory they are computed in down to the host's.

    on_keep: told of each state that is kept of its history's own window.
    """

    def __init__(
        self,
        served: ServedModel,
        fingerprint: str,
        budget_bytes: int,
        tombstones: Tombstones,
        on_keep: Sequence[OnKeep] = (),
        waiting_bytes: int = 0,
    ) -> None:
        """budget_bytes: of the host's tier. waiting_bytes: most that those who are told hold, of the device's pool if
        there is one.
        """
        self.host: LruTier[KVState] = LruTier(budget_bytes)
        self.device: LruTier[KVState] | None = None
        self.demotion: Offload[KVState, Mark] | None = None
        self._copier: Copier | None = None
        told = tuple(on_keep)

        def kept(history: History, start: int, state: KVState) -> None:
            # Not a method: the store must not know us, or the pool would wait for the garbage collection of a circle.
            for tell in told:
                tell(history, start, state)

        self._leave_pool = [(served.host or served.pool).accounts.make_room_with(self.host.make_room)]
        if served.host is None:
            self.store = StateStore(fingerprint, [(CacheSource.HOST, self.host)], tombstones, kept)
            return
        kept_pages = served.pool.accounts.num_pages - served.pool.reserved
        device: LruTier[KVState] = LruTier(max(0, kept_pages * served.pool.layout.page_bytes - waiting_bytes))
        self.device = device
        self._copier = copier = _copier(served.pool.layout.shape.device)
        host_pool = served.host

        def demote(state: KVState, mark: Mark, older: KVState | None) -> KVState:
            return copier.demote(state, host_pool, mark, older)

        self.demotion = Offload(fingerprint, self.host, copier.mark, demote, tombstones, max_waiting=_MAX_WAITING)
        demotion = self.demotion
        self._leave_pool.append(
            served.pool.accounts.make_room_with(lambda: device.make_room(demotion.holds) or demotion.make_room())
        )
        self.store = StateStore(
            fingerprint,
            [(CacheSource.GPU, device), (CacheSource.HOST, self.host)],
            tombstones,
            kept,
            lambda state: copier.promote(state, served.pool),
            partial(_deleted, demotion),
            demotion.offer,
        )

    @property
    def num_device_bytes(self) -> int:
        """Bytes of states on the device."""
        return 0 if self.device is None else self.device.num_bytes

    def close(self) -> None:
        """End what copies; another model may go on using the pools."""
        for leave in self._leave_pool:
            leave()
        if self.demotion is not None:
            self.demotion.close()
        if self._copier is not None:
            self._copier.close()


def _deleted(demotion: Offload[KVState, Mark], user: bytes | None) -> None:
    if user is None:
        demotion.clear()
    else:
        demotion.delete(user)


def _copier(device: torch.device) -> Copier:
    return CudaCopier(device) if device.type == "cuda" else ThreadCopier()
