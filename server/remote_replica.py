"""A model of another replica as a member of an ensemble: asked over gRPC, with the user's key and what is left of the
budget.
"""

from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import numpy as np

from mfalcon.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineFailure,
    InvalidInput,
    NotReady,
    Overloaded,
    UnknownModel,
)
from mfalcon.types import (
    CacheInfo,
    CacheSource,
    ContextFeatureInfo,
    ModelInfo,
    RankRequest,
    RankResult,
    TaskInfo,
    Timings,
)
from mfalcon_client import AsyncClient, ClientError, Retry, Tls, TokenFile
from mfalcon_client import CacheInfo as ClientCache
from mfalcon_client import DeadlineExceeded as ClientLate
from mfalcon_client import InvalidArgument as ClientInvalid
from mfalcon_client import Model as ClientModel
from mfalcon_client import NotFound as ClientNotFound
from mfalcon_client import Overloaded as ClientOverloaded
from mfalcon_client import Unavailable as ClientUnavailable
from server.settings.models import MemberConfig

T = TypeVar("T")


class RemoteReplica:
    """Satisfies `mfalcon.engine.members.RemoteModel`. One connection, made by the first call on the event loop.

    Nothing is tried twice: the budget is a merge's, and who is late is left out.
    """

    def __init__(self, address: str, model: str, token_file: Path | None = None, tls: Tls | None = None) -> None:
        """token_file: holds the bearer token that the replica asks for; without tls it travels in clear."""
        self.address = address
        self.model = model
        self._client: AsyncClient | None = None
        self._tls = tls
        self._token = None if token_file is None else TokenFile(token_file)

    async def describe(self, timeout_s: float) -> ModelInfo:
        """What is served there under the name."""
        return _model(await _called(self._connected.get_model(self.model, timeout_s=timeout_s)))

    async def rank(self, request: RankRequest, timeout_s: float) -> RankResult:
        """Score the candidates."""
        dense = request.dense
        columns = dense.values.reshape(len(request.candidates), len(dense.names)).T
        ranking = await _called(
            self._connected.rank(
                request.user_id,
                request.candidates,
                request_time_ms=request.request_time_ms,
                recent_events=request.recent_events,
                context=request.context,
                features=dict(zip(dense.names, columns, strict=True)),
                model=self.model,
                allow_partial=request.allow_partial,
                recompute=request.recompute,
                timeout_s=timeout_s,
            )
        )
        return RankResult(
            scores=ranking.scores,
            tasks=ranking.tasks,
            task_scores=ranking.task_scores,
            top=np.empty(0, dtype=np.uint32),
            model_version=ranking.model_version,
            cache=_cache(ranking.cache),
            timings=Timings(
                ranking.timings.queue_us,
                ranking.timings.state_us,
                ranking.timings.encode_us,
                ranking.timings.score_us,
                ranking.timings.total_us,
            ),
            history_len=ranking.history_len,
            unknown=ranking.unknown.astype(np.uint32),
            stale=ranking.stale,
            failed=ranking.failed.astype(np.uint32),
            items_version=ranking.items_version,
            graph_version=ranking.graph_version,
        )

    async def prefill(self, user_id: str, timeout_s: float) -> CacheInfo:
        """Encode the user's history."""
        return _cache(await _called(self._connected.prefill(user_id, model=self.model, timeout_s=timeout_s)))

    async def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            await self._client.close()

    @property
    def _connected(self) -> AsyncClient:
        if self._client is None:
            self._client = AsyncClient(
                self.address,
                retry=Retry(attempts=1),
                tls=self._tls,
                token=self._token,
                token_in_clear=self._tls is None,
            )
        return self._client


def tls_to(member: MemberConfig) -> Tls | None:
    """How a member is spoken to; None in clear. Raises ConfigError for a file that cannot be read."""
    if member.tls_ca_file is None:
        return None
    return Tls(
        _read("tls_ca_file", member.tls_ca_file),
        _read("tls_key_file", member.tls_key_file),
        _read("tls_cert_file", member.tls_cert_file),
    )


def _read(setting: str, path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise ConfigError(f"ensembles.members: {setting}: cannot read {path}: {error.strerror}") from error


async def _called(call: Awaitable[T]) -> T:
    """The answer, or why there is none in the server's words."""
    try:
        return await call
    except ClientOverloaded as error:
        raise Overloaded(error.details, retry_after_s=error.retry_after_s) from error
    except ClientLate as error:
        raise DeadlineExceeded(error.details) from error
    except ClientUnavailable as error:
        raise NotReady(error.details) from error
    except ClientInvalid as error:
        raise InvalidInput.of(error.details) from error
    except ClientNotFound as error:
        raise UnknownModel(error.details) from error
    except ClientError as error:
        raise EngineFailure(str(error)) from error


def _cache(cache: ClientCache) -> CacheInfo:
    return CacheInfo(CacheSource[cache.source.name], cache.reused_tokens, cache.encoded_tokens)


def _model(model: ClientModel) -> ModelInfo:
    """What it says of itself. Raises EngineFailure for an ensemble, and for what this release cannot read."""
    if model.ensemble is not None:
        raise EngineFailure(f"{model.name} is an ensemble there, must be a model")
    return ModelInfo(
        name=model.name,
        version=model.version,
        architecture=model.architecture,
        tasks=model.tasks,
        actions=model.actions,
        context_features=tuple(
            ContextFeatureInfo(f.name, f.num_values, f.values, f.derived) for f in model.context_features
        ),
        dense_features=model.dense_features,
        max_history=model.max_history,
        max_candidates=model.max_candidates,
        prefix_stable=model.prefix_stable,
        reads_last_events=model.reads_last_events,
        backend=model.backend,
        task_infos=tuple(_task(task.name, task.kind, task.weight) for task in model.task_infos),
    )


def _task(name: str, kind: str, weight: float) -> TaskInfo:
    match kind:
        case "binary" | "regression":
            return TaskInfo(name, kind, weight)
        case _:
            raise EngineFailure(f"task {name}: got kind {kind!r}, must be binary or regression")
