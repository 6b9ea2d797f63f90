"""A server over gRPC: a few channels in turns, so that no connection's limit of streams holds requests back."""

import math
from collections.abc import Awaitable
from itertools import cycle
from typing import TypeVar

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import DecodeError

from loadtest.load.target import SETUP_TIMEOUT_S, Scored, ServedModel
from mfalcon.errors import CallFailed
from mfalcon.types import Events, Floats, Ids
from mfalcon_client import RANK_KEY, Tls, TokenFile, encoding, rank_key
from proto import ranking_pb2 as pb

_SERVICE = pb.DESCRIPTOR.services_by_name["Ranking"].full_name
_MAX_MESSAGE_BYTES = 64 << 20

Answer = TypeVar("Answer")


class GrpcTarget:
    """Satisfies `Target`. A body is a serialized message: a user's field in front of it makes the message whole.

    model: that is asked, "" for the server's default one. tls: to the server, None in clear. token: that it asks for.
    """

    def __init__(
        self,
        address: str,
        num_channels: int = 4,
        *,
        model: str = "",
        tls: Tls | None = None,
        token: TokenFile | None = None,
    ) -> None:
        self._name = model
        self._token = token
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
        self._channels = [
            grpc.aio.insecure_channel(address, options=options)
            if tls is None
            else grpc.aio.secure_channel(address, tls.credentials, options=options)
            for _ in range(num_channels)
        ]
        self._ranks = cycle([_method(channel, "Rank") for channel in self._channels])
        self._append = _method(self._channels[0], "AppendEvents")
        self._delete = _method(self._channels[0], "DeleteUser")
        self._model = _method(self._channels[0], "GetModel")

    def rank_body(self, candidates: Ids, request_time_ms: int) -> bytes:
        """A serialized RankRequest but for its user."""
        return encoding.rank_options(candidates, request_time_ms=request_time_ms, model=self._name)

    def append_body(self, events: Events) -> bytes:
        """A serialized AppendEventsRequest but for its user."""
        return encoding.append_options(events, None)

    async def model(self) -> ServedModel:
        """GetModel."""
        asked = pb.GetModelRequest(model=self._name).SerializeToString()
        reply = pb.GetModelResponse.FromString(
            await _explained(self._model(asked, metadata=self._known(), timeout=SETUP_TIMEOUT_S))
        )
        return ServedModel(reply.name, reply.version, reply.backend, reply.max_candidates, len(reply.actions))

    async def rank(self, user_id: str, body: bytes, timeout_s: float | None) -> Scored:
        """Rank. The timeout goes on the wire alone: gRPC's own would end the call here, and hide a silent server."""
        metadata = self._key(user_id)
        if timeout_s is not None:
            metadata += (("grpc-timeout", _on_the_wire(timeout_s)),)
        raw = await _explained(next(self._ranks)(encoding.user(user_id) + body, metadata=metadata))
        try:
            reply = pb.RankResponse.FromString(raw)
        except DecodeError:
            return Scored(np.empty(0, dtype=np.float32), 0, 0, "")
        scores: Floats = np.asarray(reply.scores, dtype=np.float32)
        return Scored(scores, reply.cache.encoded_tokens, len(reply.unknown), reply.model_version)

    async def append(self, user_id: str, body: bytes) -> None:
        """AppendEvents."""
        await _explained(
            self._append(encoding.user(user_id) + body, metadata=self._key(user_id), timeout=SETUP_TIMEOUT_S)
        )

    async def delete(self, user_id: str) -> None:
        """DeleteUser."""
        await _explained(self._delete(encoding.user(user_id), metadata=self._key(user_id), timeout=SETUP_TIMEOUT_S))

    def _key(self, user_id: str) -> tuple[tuple[str, str], ...]:
        """By which a balancer keeps a user on one replica, and the token."""
        return ((RANK_KEY, rank_key(user_id)), *self._known())

    def _known(self) -> tuple[tuple[str, str], ...]:
        return () if self._token is None else (("authorization", f"Bearer {self._token()}"),)

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels:
            await channel.close()


def _method(channel: grpc.aio.Channel, name: str) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
    """A method of raw bytes."""
    return channel.unary_unary(f"/{_SERVICE}/{name}")


def _on_the_wire(seconds: float) -> str:
    """A header has at most eight digits."""
    return f"{math.ceil(seconds * 1e6)}u" if seconds < 90 else f"{math.ceil(seconds * 1e3)}m"


async def _explained(call: Awaitable[Answer]) -> Answer:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise CallFailed(error.code().name, error.details() or "no details") from error
