"""The item table of a model that is served, patched while it serves.

Two buffers take turns, each with all rows. A delta is written to the one that nobody reads, beside the requests, and
becomes the table by one assignment between two steps of the device. A request keeps the version that it began with, so
its answer is exactly that one's. The price is memory for two more tables, from the first delta on.
"""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch

from mfalcon.backends.select import Served
from mfalcon.errors import CheckpointError, InvalidInput, Overloaded
from mfalcon.features.provider import FeatureProvider
from mfalcon.history.history import History
from mfalcon.items.buffer import Patch, RowBuffer, bias_of
from mfalcon.items.delta import Delta
from mfalcon.items.known import GrownItems
from mfalcon.items.version import ItemVersion
from mfalcon.kvcache.item_rows import RowPolicy
from mfalcon.memory import available_bytes
from mfalcon.models.base import EventRanker, Ranker, TaskRanker
from mfalcon.models.items import UNKNOWN_ROW, ItemTable, KnownItems

_SPARE_ROWS: Final = 1_024
_SPARE_SHARE: Final = 8
"""Of the rows in use, one part in so many is left free for items to come."""
_MOST_BUFFERS: Final = 4
_PATIENCE_S: Final = 0.5
"""That a delta waits for a buffer before it takes memory for another one; once there are so many it waits longer."""
_LONGEST_WAIT_S: Final = 30.0
_POLL_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """policy: of KV states that were made with rows that have changed since. max_new_items: that deltas may bring."""

    policy: RowPolicy = field(default_factory=RowPolicy)
    max_new_items: int = 1_000_000


class LiveItems:
    """Of one model. `current` is read by any thread and assigned by the device's alone; the rest is for one thread at a
    time, who holds `lock`.
    """

    def __init__(
        self, served: Served, items: ItemTable, fingerprint: str = "", options: LiveOptions | None = None
    ) -> None:
        """fingerprint: of the checkpoint whose rows these are."""
        self.options = options or LiveOptions()
        self.lock = asyncio.Lock()
        """Held by who changes the table, from the first look at it until the device has it."""
        self._base, self._items, self._fingerprint = served, items, fingerprint
        self._config = served.model.config
        self._provider = FeatureProvider(self._config, items)
        self._buffers: list[RowBuffer] = []
        self._patches: list[Patch] = []
        """Those that some buffer lacks, in their order."""
        self.current = ItemVersion(0, "", b"", served, items, self._provider)

    @property
    def policy(self) -> RowPolicy:
        """See `mfalcon.kvcache.item_rows.ItemRows`."""
        return self.options.policy

    def tags(self, history: History, start: int) -> bytes:
        """See `mfalcon.kvcache.item_rows.ItemRows`."""
        return self.current.tags(history, start)

    def made(self, delta: Delta, patience_s: float = _LONGEST_WAIT_S) -> ItemVersion:
        """The version that a delta makes of the current one, which is not changed by it. In a thread beside, or on the
        device's, where nobody may be waited for. patience_s: for requests that read older versions.

        Raises CheckpointError for rows of another checkpoint, and for a number that does not follow; InvalidInput for
        rows that none of this model can be; Overloaded where there is no memory, or older versions are read for long.
        """
        now = self.current
        delta = delta.fitted(self._config)
        model = self._base.model
        if not isinstance(model, TaskRanker | EventRanker):
            raise InvalidInput("model", self._config.name, "one that ranks items")
        if self._items.is_open:
            raise InvalidInput("model", self._config.name, "one with a row for each item: this one hashes their ids")
        is_float16, has_bias = model.dtype == torch.float16, bias_of(model) is not None
        delta.check(self._config, self._fingerprint, is_float16=is_float16, has_bias=has_bias)
        delta = _numbered(delta, now.number)
        items, patch = self._resolved(delta, now)
        buffer = self._free_buffer(now, patch.stop, patience_s)
        try:
            self._catch_up(buffer, now)
            buffer.apply(patch)
        except BaseException:
            self._buffers.remove(buffer)  # nobody knows what is in it
            raise
        self._patches.append(patch)
        return self._version(delta.number, delta.digest(b"" if delta.replaces else now.digest), buffer, items)

    def adopted(self, other: "LiveItems") -> ItemVersion:
        """The current version of another ranker of the same checkpoint, for this one. In a thread beside; the other one
        must not change meanwhile.
        """
        theirs = other.current
        held = next((buffer for buffer in other._buffers if buffer.number == theirs.number), None)
        if held is None or other._fingerprint != self._fingerprint:
            return self.current
        self._buffers, self._patches = [], []
        num_rows = theirs.items.num_rows
        buffer = self._new_buffer(num_rows)
        buffer.copy_from(held, num_rows)
        return self._version(theirs.number, theirs.digest, buffer, theirs.items)

    def _resolved(self, delta: Delta, now: ItemVersion) -> tuple[GrownItems, Patch]:
        """Where the rows of a delta are, and the items with those that are new."""
        items = now.items
        if delta.replaces or not isinstance(items, GrownItems):
            items = GrownItems(self._items, self._items.side)
        rows = items.rows(delta.item_id)
        if (is_new := rows == UNKNOWN_ROW).any():
            num, most = len(items.added) + int(is_new.sum()), self.options.max_new_items
            if num > most:
                raise InvalidInput("item_id", f"{num} items that the checkpoint does not know", f"at most {most}")
            items = items.with_ids(delta.item_id[is_new])
            rows = items.rows(delta.item_id)
        return items, Patch(delta, rows, items.num_rows, now.number)

    def _free_buffer(self, now: ItemVersion, num_rows: int, patience_s: float) -> RowBuffer:
        """One that nobody reads, with so many rows."""
        # What was made and never became current is in no line of versions.
        self._buffers = [buffer for buffer in self._buffers if buffer.number <= now.number]
        self._patches = [patch for patch in self._patches if patch.delta.number <= now.number]
        began = time.monotonic()
        while True:
            # The current one is read by requests to come, whether one reads it now or not: `current` holds it.
            for buffer in self._buffers:
                if buffer.is_free and buffer.capacity >= num_rows:
                    return buffer
            self._buffers = [buffer for buffer in self._buffers if not buffer.is_free]
            waited = time.monotonic() - began
            if len(self._buffers) < 2 or (
                waited >= min(_PATIENCE_S, patience_s) and len(self._buffers) < _MOST_BUFFERS
            ):
                return self._new_buffer(num_rows)
            if waited >= patience_s:
                raise Overloaded(f"items: requests in flight still read the last {len(self._buffers)} versions")
            time.sleep(_POLL_S)

    def _new_buffer(self, num_rows: int) -> RowBuffer:
        capacity = num_rows + max(_SPARE_ROWS, num_rows // _SPARE_SHARE)
        needed = _bytes_per_row(self._base.model) * capacity
        if needed > (available := available_bytes()):
            raise Overloaded(f"items: another table needs {needed >> 20} MiB, {available >> 20} MiB are available")
        buffer = RowBuffer(self._base, capacity)
        self._buffers.append(buffer)
        return buffer

    def _catch_up(self, buffer: RowBuffer, now: ItemVersion) -> None:
        """Make what is in a buffer the current version."""
        current = next((one for one in self._buffers if one.number == now.number and one is not buffer), None)
        if current is not None:
            missing = [patch for patch in self._patches if patch.delta.number > buffer.number]
            is_known = missing and missing[0].before == buffer.number and not any(one.delta.replaces for one in missing)
            rows = np.concatenate([patch.rows for patch in missing]) if is_known else None
            buffer.copy_from(current, now.items.num_rows, rows)
        oldest = min(one.number for one in self._buffers)
        self._patches = [patch for patch in self._patches if patch.delta.number > oldest]

    def _version(self, number: int, digest: bytes, buffer: RowBuffer, items: KnownItems) -> ItemVersion:
        provider = self._provider
        if self._config.counters is not None:  # which read side features of every row
            assert isinstance(items, GrownItems)
            provider = FeatureProvider(self._config, replace(items, side=buffer.side(items.num_rows)))
        row_tags = None if self.policy.name == "frozen" else buffer.row_tags
        name = f"{number}-{digest.hex()}"
        version = ItemVersion(number, name, digest, buffer.served, items, provider, row_tags)
        buffer.lend(version)
        return version


def _numbered(delta: Delta, last: int) -> Delta:
    """With its number. Raises CheckpointError for one that does not follow the last one."""
    if not delta.number:
        return replace(delta, number=last + 1)
    if delta.number <= last:
        raise CheckpointError(f"number: got {delta.number}, must be more than {last}, that of the last delta")
    if delta.number != last + 1 and not delta.replaces:
        raise CheckpointError(f"number: got {delta.number}, must be {last + 1}: deltas follow each other without a gap")
    return delta


def _bytes_per_row(model: Ranker) -> int:
    """Of a table, all columns."""
    columns = [model.items.id.weight, *(buffer for buffer in model.items.buffers())]
    bias = bias_of(model)
    columns += [] if bias is None else [bias]
    of_columns = sum(column[0].nbytes for column in columns)
    return of_columns + model.items.id.weight[0].nbytes  # the sum of id and side features
