"""Client of mfalcon, an online ranking server: `Client` for threads, `AsyncClient` for asyncio, arrays in and out."""

from mfalcon_client.affinity import RANK_KEY, rank_key
from mfalcon_client.async_client import AsyncClient
from mfalcon_client.async_streams import AsyncRankStream
from mfalcon_client.client import Client
from mfalcon_client.connection import Tls
from mfalcon_client.errors import (
    AccessDenied,
    ClientError,
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Overloaded,
    ServerFailure,
    Unavailable,
    VersionConflict,
)
from mfalcon_client.item_ids import item_id, item_ids
from mfalcon_client.retry import Retry
from mfalcon_client.streams import RankStream
from mfalcon_client.token_file import TokenFile
from mfalcon_client.types import (
    EVENT_DTYPE,
    Append,
    Appended,
    CacheInfo,
    CacheSource,
    ContextFeature,
    Ensemble,
    Event,
    Events,
    HistoryPage,
    Ids,
    Interests,
    KeptState,
    Member,
    MemberResult,
    Model,
    Nearest,
    Part,
    Rank,
    Ranking,
    Rerank,
    Retrieve,
    Returns,
    Task,
    Timings,
)

__version__ = "0.1.0"

__all__ = [
    "EVENT_DTYPE",
    "RANK_KEY",
    "AccessDenied",
    "Append",
    "Appended",
    "AsyncClient",
    "AsyncRankStream",
    "CacheInfo",
    "CacheSource",
    "Client",
    "ClientError",
    "Closed",
    "ContextFeature",
    "DeadlineExceeded",
    "Ensemble",
    "Event",
    "Events",
    "HistoryPage",
    "Ids",
    "Interests",
    "InvalidArgument",
    "KeptState",
    "Member",
    "MemberResult",
    "Model",
    "Nearest",
    "NotFound",
    "Overloaded",
    "Part",
    "Rank",
    "RankStream",
    "Ranking",
    "Rerank",
    "Retrieve",
    "Retry",
    "Returns",
    "ServerFailure",
    "Task",
    "Timings",
    "Tls",
    "TokenFile",
    "Unavailable",
    "VersionConflict",
    "item_id",
    "item_ids",
    "rank_key",
]
