"""A small synchronous gRPC client: what `mfalcon rank`, the demo and the replay use, and a pattern for your own."""

import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Self

import grpc
import numpy as np

from mfalcon.errors import CallFailed
from mfalcon.types import CacheInfo, CacheSource, Events, Ids, ModelInfo, RankResult, Timings
from mfalcon.types import ContextFeatureInfo as FeatureInfo
from proto import ranking_pb2 as pb
from proto.ranking_pb2_grpc import RankingStub

_MAX_MESSAGE_BYTES = 64 << 20
_POLL_S = 0.1


def rank_message(
    user_id: str,
    candidates: Ids | Sequence[int],
    *,
    top_k: int = 0,
    request_time_ms: int = 0,
    recent_events: Events | None = None,
    context: Mapping[str, int] = MappingProxyType({}),
    model: str = "",
    allow_partial: bool = False,
) -> pb.RankRequest:
    """A request as it travels. model: by name, "" for the server's default one."""
    return pb.RankRequest(
        recent_events=[] if recent_events is None else _events(recent_events),
        user_id=user_id,
        candidates=np.asarray(candidates, dtype=np.int64).tolist(),
        top_k=top_k,
        request_time_ms=request_time_ms,
        context=dict(context),
        model=model,
        allow_partial=allow_partial,
    )


def rank_result(response: pb.RankResponse) -> RankResult:
    """An answer in the project's words."""
    times = response.timings
    return RankResult(
        scores=np.array(response.scores, dtype=np.float32),
        tasks=tuple(response.tasks),
        task_scores=np.array(response.task_scores, dtype=np.float32).reshape(len(response.tasks), -1),
        top=np.array(response.top, dtype=np.uint32),
        model_version=response.model_version,
        cache=_cache(response.cache),
        timings=Timings(times.queue_us, times.state_us, times.encode_us, times.score_us, times.total_us),
        history_len=response.history_len,
        unknown=np.array(response.unknown, dtype=np.uint32),
        stale=response.stale,
        failed=np.array(response.failed, dtype=np.uint32),
    )


def append_message(user_id: str, events: Events, expected_len: int | None) -> pb.AppendEventsRequest:
    """Events as they travel."""
    return pb.AppendEventsRequest(user_id=user_id, events=_events(events), expected_len=expected_len)


class Client:
    """One channel to one server. Not thread-safe to close, otherwise safe to share."""

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
        self._channel = grpc.insecure_channel(target, options=options)
        self._stub = RankingStub(self._channel)
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server answers requests: one that loads its model listens already.

        Raises CallFailed if it does not in time.
        """
        give_up = time.monotonic() + timeout_s
        try:
            grpc.channel_ready_future(self._channel).result(timeout_s)
        except grpc.FutureTimeoutError as error:
            raise CallFailed("UNAVAILABLE", f"no server answered within {timeout_s:g} s") from error
        while True:
            try:
                self.model()
                return
            except CallFailed as error:
                if error.code != "UNAVAILABLE" or time.monotonic() > give_up:
                    raise
            time.sleep(_POLL_S)

    def rank(
        self,
        user_id: str,
        candidates: Ids | Sequence[int],
        *,
        top_k: int = 0,
        request_time_ms: int = 0,
        recent_events: Events | None = None,
        context: Mapping[str, int] = MappingProxyType({}),
        model: str = "",
        allow_partial: bool = False,
    ) -> RankResult:
        """Score candidates for a user by a model; see `RankResult`. allow_partial: where the timeout is too short for
        all, those of the first ones. Raises CallFailed.
        """
        request = rank_message(
            user_id,
            candidates,
            top_k=top_k,
            request_time_ms=request_time_ms,
            recent_events=recent_events,
            context=context,
            model=model,
            allow_partial=allow_partial,
        )
        with _explained():
            return rank_result(self._stub.Rank(request, timeout=self._timeout_s))

    def append_events(self, user_id: str, events: Events, expected_len: int | None = None) -> int:
        """Append events to a user's history and return its new length. Raises CallFailed."""
        request = append_message(user_id, events, expected_len)
        with _explained():
            return int(self._stub.AppendEvents(request, timeout=self._timeout_s).history_len)

    def history_len(self, user_id: str) -> int:
        """Events in a user's history, 0 for a user that is not known. Raises CallFailed.

        Only a rank tells without writing, so this costs one of a single candidate.
        """
        return self.rank(user_id, [0], top_k=1).history_len

    def prefill(self, user_id: str, model: str = "") -> CacheInfo:
        """Encode a user's history ahead of a request. Raises CallFailed."""
        request = pb.PrefillRequest(user_id=user_id, model=model)
        with _explained():
            return _cache(self._stub.Prefill(request, timeout=self._timeout_s))

    def delete_user(self, user_id: str) -> None:
        """Forget a user. Raises CallFailed."""
        with _explained():
            self._stub.DeleteUser(pb.DeleteUserRequest(user_id=user_id), timeout=self._timeout_s)

    def model(self, name: str = "") -> ModelInfo:
        """The model that the server has under a name, "" for its default one. Raises CallFailed."""
        with _explained():
            return _model(self._stub.GetModel(pb.GetModelRequest(model=name), timeout=self._timeout_s))

    def models(self) -> tuple[ModelInfo, ...]:
        """Every model that the server has, the default one first. Raises CallFailed."""
        with _explained():
            reply = self._stub.ListModels(pb.ListModelsRequest(), timeout=self._timeout_s)
        return tuple(map(_model, reply.models))


def _model(reply: pb.GetModelResponse) -> ModelInfo:
    return ModelInfo(
        name=reply.name,
        version=reply.version,
        architecture=reply.architecture,
        tasks=tuple(reply.tasks),
        actions=tuple(reply.actions),
        context_features=tuple(
            FeatureInfo(f.name, f.num_values, tuple(f.values), f.derived) for f in reply.context_features
        ),
        max_history=reply.max_history,
        max_candidates=reply.max_candidates,
        prefix_stable=reply.prefix_stable,
        backend=reply.backend,
    )


class _explained:
    """Turns a gRPC error into CallFailed."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, grpc.RpcError):
            raise CallFailed(error.code().name, error.details() or "no details") from error


def _events(events: Events) -> list[pb.Event]:
    return [
        pb.Event(item_id=item_id, actions=actions, value=value, time_ms=time_ms)
        for item_id, actions, value, time_ms in events.tolist()
    ]


def _cache(info: pb.CacheInfo) -> CacheInfo:
    return CacheInfo(CacheSource(info.source), info.reused_tokens, info.encoded_tokens)
