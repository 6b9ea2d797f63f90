"""What each call is, for both clients: its method, its bytes, whether it may be repeated, how its answer is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError

from mfalcon_client import decoding, encoding
from mfalcon_client import messages as pb
from mfalcon_client.append_ids import new_append_id
from mfalcon_client.errors import ClientError, ServerFailure
from mfalcon_client.retry import Repeat
from mfalcon_client.types import (
    Append,
    Appended,
    CacheInfo,
    Events,
    HistoryPage,
    Interests,
    Model,
    Rank,
    Ranking,
    Retrieve,
    Returns,
)

Answer = TypeVar("Answer")

_SERVICE = pb.DESCRIPTOR.services_by_name["Ranking"].full_name


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """A call before its first attempt. user_id: whose it is, None where it is nobody's."""

    method: str
    request: bytes
    user_id: str | None
    repeat: Repeat
    read: Callable[[bytes], Answer]

    @property
    def path(self) -> str:
        """As gRPC has it."""
        return f"/{_SERVICE}/{self.method}"

    def answer(self, raw: bytes) -> Answer:
        """The answer in its bytes. Raises ServerFailure where it cannot be read."""
        try:
            return self.read(raw)
        except (DecodeError, ValueError) as error:
            unknown = self.repeat is not Repeat.IDEMPOTENT
            raise ServerFailure("INTERNAL", f"the answer cannot be read: {error}", outcome_unknown=unknown) from error


@dataclass(frozen=True, slots=True)
class Expected:
    """What an answer to a rank must fit."""

    num_candidates: int
    allow_partial: bool
    retrieve: Retrieve | None
    returns: Returns

    def check(self, ranking: Ranking) -> Ranking:
        """The same ranking. Raises ValueError where it is no answer."""
        num, num_scores = ranking.num_scored, len(ranking.scores)
        if self.retrieve is not None:
            if not 1 <= num <= self.retrieve.k or len(ranking.candidates) != num:
                raise ValueError(
                    f"{num} scores of {len(ranking.candidates)} retrieved candidates, {self.retrieve.k} asked"
                )
        elif num != self.num_candidates and not (self.allow_partial and 1 <= num < self.num_candidates):
            raise ValueError(f"{num} scores of {self.num_candidates} candidates")
        # A server of an older release returns all of them.
        if num_scores != num and not (self.returns == "top" and num_scores == len(ranking.top)):
            raise ValueError(f"{num_scores} scores of {num} candidates")
        of_members = (at for member in ranking.members for at in (member.unknown, member.failed))
        if any(len(at) and at.max() >= num for at in (ranking.top, ranking.unknown, ranking.failed, *of_members)):
            raise ValueError(f"positions past the {num} scores")
        return ranking


def rank(user_id: str, options: bytes, expected: Expected) -> Call[Ranking]:
    """options: of `encoding.rank_options`."""

    def read(raw: bytes) -> Ranking:
        return expected.check(decoding.ranking(raw))

    return Call("Rank", encoding.user(user_id) + options, user_id, Repeat.IDEMPOTENT, read)


def rank_stream(rank: Rank) -> tuple[Call[bytes], Expected]:
    """The same in parts. What is read of an answer is its first message."""
    request, expected = _request_of(rank)
    return Call("RankStream", request, rank.user_id, Repeat.IDEMPOTENT, bytes), expected


def _request_of(rank: Rank) -> tuple[bytes, Expected]:
    """A serialized RankRequest, and what an answer to it must fit."""
    options = {field.name: getattr(rank, field.name) for field in fields(rank)[1:]}
    expected = Expected(
        len(rank.candidates), allow_partial=rank.allow_partial, retrieve=rank.retrieve, returns=rank.returns
    )
    return encoding.user(rank.user_id) + encoding.rank_options(**options), expected


def rank_batch(ranks: Sequence[Rank]) -> Call[tuple[Ranking | ClientError, ...]]:
    """Ranks of several users."""
    requests, expected = [], []
    for each in ranks:
        request, fits = _request_of(each)
        requests.append(request)
        expected.append(fits)

    def read(raw: bytes) -> tuple[Ranking | ClientError, ...]:
        outcomes = decoding.rankings(raw)
        if len(outcomes) != len(requests):
            raise ValueError(f"{len(outcomes)} outcomes of {len(requests)} ranks")
        return tuple(
            each.check(outcome) if isinstance(outcome, Ranking) else outcome
            for each, outcome in zip(expected, outcomes, strict=True)
        )

    return Call("RankBatch", encoding.batch(requests), None, Repeat.IDEMPOTENT, read)


def interests(user_id: str, options: bytes, conditions: Sequence[str], top_items: int) -> Call[Interests]:
    """options: of `encoding.interests_options`, which these are in."""

    def read(raw: bytes) -> Interests:
        found = decoding.interests(raw)
        if conditions and found.conditions != tuple(conditions):
            raise ValueError(f"interests of {len(found.conditions)} conditions, {len(conditions)} asked")
        if len(found.nearest) != (len(found.conditions) if top_items else 0):
            raise ValueError(f"items of {len(found.nearest)} of {len(found.conditions)} conditions")
        if any(len(each.item_ids) != len(each.scores) for each in found.nearest):
            raise ValueError("not as many scores as items")
        return found

    return Call("Interests", encoding.user(user_id) + options, user_id, Repeat.IDEMPOTENT, read)


def append_events(
    user_id: str,
    events: Events,
    expected_len: int | None,
    expected_version: bytes | None = None,
    append_id: str = "",
    late_events: str = "",
    *,
    ids_are_kept: bool = False,
) -> Call[Appended]:
    """Events for the end of a history. append_id: a new one if it is "". ids_are_kept: by every server that may answer.

    Older servers know `expected_len` alone: then that is what makes a repetition safe.
    """
    append_id = append_id or new_append_id()
    options = encoding.append_options(events, expected_len, expected_version, append_id, late_events)
    request, num_events = encoding.user(user_id) + options, len(events)
    repeat = Repeat.CONDITIONAL if ids_are_kept or expected_len is not None else Repeat.NEVER

    def read(raw: bytes) -> Appended:
        told = decoding.appended(raw)
        if expected_version is not None and not told.version:
            raise ValueError("a server of an older release has appended without a look at expected_version")
        kept = num_events - len(told.discarded)
        if told.history_len < kept:
            raise ValueError(f"a history of {told.history_len} events, {kept} appended ones included")
        return told

    return Call("AppendEvents", request, user_id, repeat, read)


def append_batch(appends: Sequence[Append]) -> Call[tuple[Appended | ClientError, ...]]:
    """Appends of different users. Servers that have this call keep append ids."""
    requests = [
        encoding.user(each.user_id)
        + encoding.append_options(
            each.events,
            each.expected_len,
            each.expected_version,
            each.append_id or new_append_id(),
            each.late_events,
        )
        for each in appends
    ]

    def read(raw: bytes) -> tuple[Appended | ClientError, ...]:
        outcomes = decoding.outcomes(raw)
        if len(outcomes) != len(requests):
            raise ValueError(f"{len(outcomes)} outcomes of {len(requests)} appends")
        return outcomes

    return Call("AppendBatch", encoding.batch(requests), None, Repeat.CONDITIONAL, read)


def get_history(
    user_id: str, first: int, limit: int, expected_version: bytes | None, *, with_states: bool
) -> Call[HistoryPage]:
    """A page of a history."""
    options = encoding.history_options(first, limit, expected_version, with_states=with_states)

    def read(raw: bytes) -> HistoryPage:
        page = decoding.history_page(raw)
        if page.next_first != page.first + len(page.events) or page.next_first > page.history_len:
            raise ValueError(f"a page of {len(page.events)} events from {page.first} to {page.next_first}")
        return page

    return Call("GetHistory", encoding.user(user_id) + options, user_id, Repeat.IDEMPOTENT, read)


def prefill(user_id: str, model: str, conditions: Sequence[str] = (), request_time_ms: int = 0) -> Call[CacheInfo]:
    """model: by name, "" for the default one, or the first that has conditions if some are given."""
    request = encoding.user(user_id) + encoding.prefill_options(model, conditions, request_time_ms)
    return Call("Prefill", request, user_id, Repeat.IDEMPOTENT, decoding.cache_info)


def delete_user(user_id: str) -> Call[None]:
    """Deleting an unknown user succeeds."""
    return Call("DeleteUser", encoding.user(user_id), user_id, Repeat.IDEMPOTENT, decoding.nothing)


def get_model(name: str) -> Call[Model]:
    """name: "" for the default one."""
    return Call("GetModel", encoding.model_name(name), None, Repeat.IDEMPOTENT, decoding.model)


def list_models() -> Call[tuple[Model, ...]]:
    """The default one first."""
    return Call("ListModels", b"", None, Repeat.IDEMPOTENT, decoding.models)
