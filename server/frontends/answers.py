"""What the engine's process says to a front-end."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from mfalcon import errors
from mfalcon.errors import EngineFailure, MFalconError
from mfalcon.load import Load
from mfalcon.types import (
    EVENT_DTYPE,
    Appended,
    AppendOutcome,
    CacheInfo,
    HistoryPage,
    Items,
    KeptState,
    ModelInfo,
)
from server.frontends.message import Message, Notes, flat
from server.frontends.rankings import Interested, Part, Ranked

Attribute: TypeAlias = str | int | float | bool | None

ERRORS: Mapping[str, type[MFalconError]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MFalconError)
}


class Failed(Message):
    """The error of a call. name: its class; attributes: what it carries beside its text."""

    name: str
    text: str
    attributes: dict[str, Attribute]
    notes: Notes | None = None

    @classmethod
    def of(cls, call: int, error: MFalconError) -> "Failed":
        """What answers with an error; one of a class that is not in mfalcon/errors.py travels as that which it is a
        kind of.
        """
        name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS)
        attributes = {key: value for key, value in vars(error).items() if isinstance(value, Attribute)}
        return cls(call, name, str(error), attributes)

    def error(self) -> MFalconError:
        """The error, to be raised."""
        kind = ERRORS.get(self.name, EngineFailure)
        error = kind.__new__(kind, self.text)
        vars(error).update(self.attributes)
        return error


class Written(Message):
    """What an append is told."""

    told: Appended


class WrittenEach(Message):
    """What each append of a batch is told: None of one that failed, whose error is the next of `failed`."""

    told: tuple[Appended | None, ...]
    failed: tuple[Failed, ...]

    @classmethod
    def of(cls, call: int, outcomes: Sequence[AppendOutcome]) -> "WrittenEach":
        """What answers with outcomes."""
        told = tuple(outcome if isinstance(outcome, Appended) else None for outcome in outcomes)
        failed = tuple(Failed.of(call, outcome) for outcome in outcomes if isinstance(outcome, MFalconError))
        return cls(call, told, failed)

    def outcomes(self) -> list[AppendOutcome]:
        """The outcomes, as the engine gave them."""
        failed = iter(self.failed)
        return [next(failed).error() if told is None else told for told in self.told]


class Page(Message):
    """See `HistoryPage`. events: EVENT_DTYPE."""

    history_len: int
    version: bytes
    base: int
    first: int
    events: bytes
    page_version: bytes
    stale: bool
    states: tuple[KeptState, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, call: int, page: HistoryPage) -> "Page":
        """What answers with a page."""
        return cls(
            call,
            page.history_len,
            page.version,
            page.base,
            page.first,
            flat(page.events, EVENT_DTYPE),
            page.page_version,
            page.stale,
            page.states,
            page.texts,
        )

    def page(self) -> HistoryPage:
        """The page, as the engine gave it."""
        return HistoryPage(
            self.history_len,
            self.version,
            self.base,
            self.first,
            np.frombuffer(self.events, EVENT_DTYPE),
            self.page_version,
            self.stale,
            self.states,
            self.texts,
        )


class Listed(Message):
    """See `Items`. item_ids: int64."""

    item_ids: bytes
    titles: tuple[str, ...]
    num_items: int
    texts: tuple[str, ...]

    @classmethod
    def of(cls, call: int, items: Items) -> "Listed":
        """What answers with items."""
        return cls(call, flat(items.item_ids, np.int64), items.titles, items.num_items, items.texts)

    def items(self) -> Items:
        """The items, as the engine gave them."""
        return Items(np.frombuffer(self.item_ids, np.int64), self.titles, self.num_items, self.texts)


class Prefilled(Message):
    """What there was of the state."""

    cache: CacheInfo


class Deleted(Message):
    """The user is forgotten."""


class Scraped(Message):
    """The metrics, in the format that was asked for."""

    text: bytes


class Status(Message):
    """How the engine's process does. phase: LOADING or WAITING of server/handler.py, or SERVING of
    server/frontends/wire.py. ready, load: see `RankingEngine`. models: the default one first, none before it serves.
    """

    phase: str
    ready: bool
    models: tuple[ModelInfo, ...]
    load: Load


Answer: TypeAlias = (
    Ranked | Part | Interested | Written | WrittenEach | Page | Listed | Prefilled | Deleted | Scraped | Failed | Status
)
