"""The client for threads: `Client`."""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar, cast

import grpc

from mfalcon_client import calls, encoding
from mfalcon_client.append_ids import KeptIds
from mfalcon_client.calls import Call
from mfalcon_client.connection import Birthplace, Connection, Metadata, Spread, Tls, Token, anywhere
from mfalcon_client.errors import ClientError, DeadlineExceeded, ServerFailure, Unavailable
from mfalcon_client.retry import DEFAULT_RETRY, ONCE, Attempts, Budget, Failure, Retry, checked_timeout
from mfalcon_client.streams import RankStream, Responses
from mfalcon_client.types import (
    Append,
    Appended,
    CacheInfo,
    Events,
    Features,
    HistoryPage,
    Ids,
    Interests,
    Model,
    Rank,
    Ranking,
    Rerank,
    Retrieve,
    Returns,
)

Answer = TypeVar("Answer")
Reply = TypeVar("Reply")

_Begin = Callable[[], "grpc.Future[bytes]"]

DEFAULT_TIMEOUT_S = 10.0
POLL_S = 0.1


class Client:
    """Calls of one server, or of several as one. Every method may be called from many threads at once.

    target, tls, token, token_in_clear, spread: see `connection.Connection`. timeout_s: of a call that gives none, in
    seconds, all its attempts included. hedge_after_s: a rank without an answer for so long is asked once more, and the
    first answer counts; None for never. retry: see `Retry`.

    Make it after a fork, in each process. A server that restarts is found again by itself. `close` may be called while
    calls are under way: each of them raises Closed, unless its answer was there.
    """

    def __init__(
        self,
        target: str | list[str] | tuple[str, ...],
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        tls: Tls | None = None,
        token: Token | None = None,
        token_in_clear: bool = False,
        spread: Spread = "first",
        retry: Retry = DEFAULT_RETRY,
        hedge_after_s: float | None = None,
    ) -> None:
        if hedge_after_s is not None and not hedge_after_s >= 0:
            raise ValueError(f"hedge_after_s: got {hedge_after_s}, must be at least 0, or None")
        self._connection = Connection(target, tls, token, token_in_clear, spread)
        self._timeout_s = timeout_s
        self._retry = retry
        self._hedge_after_s = hedge_after_s
        self._budget = Budget(retry.budget)
        self._kept_ids = KeptIds()
        self._birthplace = Birthplace()
        self._closing = threading.Event()
        address, options = self._connection.address, self._connection.options
        self._channel = (
            grpc.insecure_channel(address, options)
            if tls is None
            else grpc.secure_channel(address, tls.credentials, options)
        )
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Calls under way raise Closed, and so does every later one."""
        self._birthplace.check()
        self._closing.set()
        self._channel.close()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until a server answers: one that loads its model listens already. Raises Unavailable if none does."""
        give_up = time.monotonic() + checked_timeout(timeout_s)
        while True:
            left = max(POLL_S, give_up - time.monotonic())
            try:
                self._call(calls.get_model(""), left, waits=True)
                return
            except (Unavailable, DeadlineExceeded) as error:
                if time.monotonic() >= give_up:
                    raise Unavailable("UNAVAILABLE", f"no server was ready within {timeout_s:g} s: {error}") from error
            self._closing.wait(POLL_S)

    def rank(
        self,
        user_id: str,
        candidates: Ids = (),
        *,
        top_k: int = 0,
        request_time_ms: int = 0,
        recent_events: Events = (),
        context: Mapping[str, int] = MappingProxyType({}),
        features: Features = MappingProxyType({}),
        model: str = "",
        allow_partial: bool = False,
        rerank: Rerank | None = None,
        recompute: bool = False,
        retrieve: Retrieve | None = None,
        returns: Returns = "both",
        exclude_unknown: bool = False,
        exclude_seen: bool = False,
        timeout_s: float | None = None,
    ) -> Ranking:
        """Score candidates, [num_candidates] item ids, for a user by a model.

        top_k: how many positions `top` names. request_time_ms: what the model sees as now, 0 for the server's clock.
        recent_events: events after the stored history that this call alone sees. context: the request's features by
        name. features: the candidates', [num_candidates] numbers by name. model: by name, "" for the default one.
        allow_partial: where the time is too short for all candidates, the scores of the first ones are welcome. rerank:
        a `top` that is not the order of the scores. recompute: encode the history anew, and use and change no KV state;
        the scores are the same. retrieve: what proposes the candidates, of which none are given then. returns: all
        scores and the top ("both"), all scores alone, or the top with its scores alone, which for thousands of
        candidates is a fraction of the bytes. exclude_unknown, exclude_seen: keep candidates that the model does not
        know, and items of the user's history and recent events, out of `top`; their scores stay. Raises ClientError.
        """
        options = encoding.rank_options(
            candidates,
            top_k=top_k,
            request_time_ms=request_time_ms,
            recent_events=recent_events,
            context=context,
            features=features,
            model=model,
            allow_partial=allow_partial,
            rerank=rerank,
            recompute=recompute,
            retrieve=retrieve,
            returns=returns,
            exclude_unknown=exclude_unknown,
            exclude_seen=exclude_seen,
        )
        expected = calls.Expected(len(candidates), allow_partial=allow_partial, retrieve=retrieve, returns=returns)
        call = calls.rank(user_id, options, expected)
        return self._call(call, timeout_s, hedge_after_s=self._hedge_after_s)

    def rank_batch(self, ranks: Sequence[Rank], *, timeout_s: float | None = None) -> tuple[Ranking | ClientError, ...]:
        """Score candidates for several users in one call, each rank by itself. Returns what became of each, in their
        order: what `rank` would have returned or raised. A server of an older release has no such call
        (ClientError, UNIMPLEMENTED). Raises any ClientError of the whole call.
        """
        return self._call(calls.rank_batch(ranks), timeout_s)

    def rank_stream(self, rank: Rank, *, timeout_s: float | None = None) -> RankStream:
        """Score candidates as `rank` does, and take scores as they come: iterate over the stream for its parts, in the
        order of the candidates; then `ranking` is the whole answer. Returns once the first part is here, until when the
        call is repeated as a rank is. timeout_s: of all parts. Raises ClientError, and so does the stream: Unavailable
        (ABORTED) where the model was exchanged meanwhile.
        """
        call, expected = calls.rank_stream(rank)

        def attempt(metadata: Metadata, attempts: Attempts) -> tuple[Responses, bytes]:
            method: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(call.path)
            responses = method(call.request, attempts.begin(), metadata)
            try:
                return responses, next(responses)
            except StopIteration:
                raise ServerFailure("INTERNAL", "the stream ended before its first message") from None

        def closed() -> ClientError | None:
            return attempts.closed() if self._closing.is_set() else None

        attempts = self._attempts(call, timeout_s)
        responses, first = self._repeat(call, attempts, attempt)
        return RankStream(responses, first, expected, closed)

    def append_events(
        self,
        user_id: str,
        events: Events,
        *,
        expected_len: int | None = None,
        expected_version: bytes | None = None,
        append_id: str = "",
        late_events: str = "",
        timeout_s: float | None = None,
    ) -> Appended:
        """Add events to a user's history: all of them or none; see `Appended`.

        expected_len, expected_version: of the history that the caller knows; nothing is written to another one.
        append_id: a name for this append, "" for a new one. The servers remember it: the call is repeated where that is
        of use, and written once at most; whoever gives the same name again, in another process say, is told what became
        of it. Servers of an older release do not: until one has told a version, a call without `expected_len` is never
        sent again once a server may have seen it. late_events: what becomes of events that are older than the user's
        newest: "insert", "clamp" or "reject" (nothing is written); "" for the server's setting. Raises VersionConflict
        where the history is another, and any ClientError: `outcome_unknown` says whether the events may have been
        written.
        """
        call = calls.append_events(
            user_id,
            events,
            expected_len,
            expected_version,
            append_id,
            late_events,
            ids_are_kept=self._kept_ids.surely,
        )
        return self._call(call, timeout_s)

    def append_batch(
        self, appends: Sequence[Append], *, timeout_s: float | None = None
    ) -> tuple[Appended | ClientError, ...]:
        """Add events to the histories of different users in one call, for streams and bulk loads: each append by
        itself. Returns what became of each, in their order: what `append_events` would have returned or raised.

        The call is repeated as that is, each append under its name. Raises any ClientError of the whole call: then
        nobody knows which were written, and the same appends under the same names may be given again.
        """
        return self._call(calls.append_batch(appends), timeout_s)

    def get_history(
        self,
        user_id: str,
        first: int = 0,
        *,
        limit: int = 0,
        expected_version: bytes | None = None,
        with_states: bool = False,
        timeout_s: float | None = None,
    ) -> HistoryPage:
        """A page of a user's history: at most `limit` events from position `first` on; see `HistoryPage`.

        limit: 0 for as many as the server gives at once. expected_version: of the whole history, as the first page told
        it, so that all pages are of one history. with_states: tell which KV states of the user lie where. Raises
        VersionConflict where the history is another one, and any ClientError.
        """
        call = calls.get_history(user_id, first, limit, expected_version, with_states=with_states)
        return self._call(call, timeout_s)

    def interests(
        self,
        user_id: str,
        conditions: Sequence[str] = (),
        *,
        top_items: int = 0,
        request_time_ms: int = 0,
        recent_events: Events = (),
        model: str = "",
        timeout_s: float | None = None,
    ) -> Interests:
        """A user's interests under conditions (`Model.conditions`), all of the model's without any; see `Interests`.

        top_items: how many of the nearest items to tell of each. model: one that has conditions, "" for the first of
        those. The rest is as in `rank`. Raises ClientError.
        """
        options = encoding.interests_options(
            conditions, top_items=top_items, request_time_ms=request_time_ms, recent_events=recent_events, model=model
        )
        return self._call(calls.interests(user_id, options, conditions, top_items), timeout_s)

    def prefill(
        self,
        user_id: str,
        *,
        model: str = "",
        conditions: Sequence[str] = (),
        request_time_ms: int = 0,
        timeout_s: float | None = None,
    ) -> CacheInfo:
        """Encode a user's history now, so that the next rank need not. conditions: of a model that has any; these
        interests are computed too, as of that time, and used for a call of the same history within a minute. Raises
        ClientError.
        """
        return self._call(calls.prefill(user_id, model, conditions, request_time_ms), timeout_s)

    def delete_user(self, user_id: str, *, timeout_s: float | None = None) -> None:
        """Delete a user: history and every KV state. One who is not known is deleted too. Raises ClientError."""
        self._call(calls.delete_user(user_id), timeout_s)

    def get_model(self, name: str = "", *, timeout_s: float | None = None) -> Model:
        """The model that is served under a name, "" for the default one. Raises ClientError."""
        return self._call(calls.get_model(name), timeout_s)

    def list_models(self, *, timeout_s: float | None = None) -> tuple[Model, ...]:
        """Every served model, the default one first. Raises ClientError."""
        return self._call(calls.list_models(), timeout_s)

    def _call(
        self,
        call: Call[Answer],
        timeout_s: float | None,
        *,
        hedge_after_s: float | None = None,
        waits: bool = False,
    ) -> Answer:
        attempts = self._attempts(call, timeout_s, waits=waits)
        raw = self._repeat(
            call, attempts, lambda metadata, attempts: self._attempt(call, metadata, attempts, hedge_after_s, waits)
        )
        answer = call.answer(raw)
        self._kept_ids.heard(answer)
        return answer

    def _attempts(self, call: Call[Answer], timeout_s: float | None, *, waits: bool = False) -> Attempts:
        self._birthplace.check()
        time_s = self._timeout_s if timeout_s is None else timeout_s
        retry, budget = (ONCE, Budget(ONCE.budget)) if waits else (self._retry, self._budget)
        return Attempts(retry, budget, call.repeat, time_s, any_replica=self._connection.spread == "turn")

    def _repeat(self, call: Call[Answer], attempts: Attempts, attempt: Callable[[Metadata, Attempts], Reply]) -> Reply:
        """What the first attempt gives that does not fail."""
        while not self._closing.is_set():
            metadata = self._connection.metadata(call.user_id)  # what a token raises is no answer of the server
            try:
                reply = attempt(metadata, attempts)
            except grpc.RpcError as error:
                ended = cast(grpc.Call, error)  # what a call raises is both
                if not self._closing.is_set():
                    failure = Failure.of(ended.code().name, ended.details(), ended.trailing_metadata())
                    self._closing.wait(attempts.failed(failure))
            else:
                attempts.answered()
                return reply
        raise attempts.closed()

    def _attempt(
        self, call: Call[Answer], metadata: Metadata, attempts: Attempts, hedge_after_s: float | None, waits: bool
    ) -> bytes:
        """One attempt, and a second one beside it if the answer takes long. Raises grpc.RpcError."""
        try:
            method = self._methods.get(call.path)
            if method is None:
                method = self._methods.setdefault(call.path, self._channel.unary_unary(call.path))
            if hedge_after_s is None:  # takes half of the processor time that a future does
                return method(call.request, attempts.begin(), metadata, wait_for_ready=waits)
            return _first(
                lambda: method.future(call.request, attempts.begin(), metadata),
                lambda: method.future(call.request, attempts.begin(), anywhere(metadata)),
                hedge_after_s,
            )
        except ValueError as error:
            if self._closing.is_set():  # how gRPC refuses calls of a channel that is closed
                raise attempts.closed() from error
            raise


def _first(first: _Begin, second: _Begin, after_s: float) -> bytes:
    """The answer of a call, or of another that begins when the first has none for so long, whichever comes first; the
    failure of the last if both fail.
    """
    ended: queue.SimpleQueue[grpc.Future[bytes]] = queue.SimpleQueue()
    pending = [first()]
    pending[0].add_done_callback(ended.put)
    try:
        try:
            done = ended.get(timeout=after_s)
        except queue.Empty:
            pending.append(second())
            pending[1].add_done_callback(ended.put)
            done = ended.get()
            if done.exception() is not None:
                done = ended.get()
        return done.result()
    finally:
        for call in pending:
            call.cancel()
