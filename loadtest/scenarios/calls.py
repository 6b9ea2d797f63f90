"""Ranks, appends and the rest over gRPC or HTTP, for clients that are greenlets: they wait for their answer.

Only what Locust runs may import this file: it needs gevent's patches, which Locust applies first.
"""

import json
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import quote

import grpc.experimental.gevent as grpc_gevent
import numpy as np
from geventhttpclient import HTTPClient
from geventhttpclient.url import URL
from numpy.typing import NDArray

from mfalcon_client import EVENT_DTYPE, RANK_KEY, Client, ClientError, Retry, rank_key

grpc_gevent.init_gevent()

TOP_K = 10
_START_S = 30.0
_NO_RETRIES = Retry(attempts=1)


class CallFailed(Exception):
    """A call without an answer. code: the name of the status, of gRPC in both transports."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Ranked:
    """An answer. top: positions of the best candidates. source: the tier of the state. encoded_tokens: not in it."""

    scores: NDArray[np.float64]
    num_failed: int
    top: NDArray[np.int64]
    source: str
    encoded_tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """What a client must know of the model."""

    version: str
    max_candidates: int
    num_actions: int


class Calls(Protocol):
    """One client's connection. Every call raises CallFailed."""

    def model(self) -> Served:
        """The default model; waits for a server that starts."""
        ...

    def rank(self, user_id: str, candidates: NDArray[np.int64]) -> Ranked:
        """Score candidates."""
        ...

    def append(self, user_id: str, events: NDArray[np.void]) -> int:
        """Append events of EVENT_DTYPE; the new length."""
        ...

    def prefill(self, user_id: str) -> None:
        """Encode the history."""
        ...

    def delete(self, user_id: str) -> None:
        """Delete the user."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def connect(host: str, timeout_s: float) -> Calls:
    """By the scheme of the address: http://HOST:PORT, else gRPC at HOST:PORT. timeout_s: of each call."""
    if host.startswith("http://"):
        return HttpCalls(host, timeout_s)
    return GrpcCalls(host.removeprefix("grpc://"), timeout_s)


class GrpcCalls:
    """Satisfies `Calls` by the client that callers use, without its retries: what is measured is the server."""

    def __init__(self, address: str, timeout_s: float) -> None:
        self._client = Client(address, timeout_s=timeout_s, retry=_NO_RETRIES)

    def model(self) -> Served:
        """GetModel."""
        with _explained():
            self._client.wait_ready(_START_S)
            model = self._client.get_model()
        return Served(model.version, model.max_candidates, len(model.actions))

    def rank(self, user_id: str, candidates: NDArray[np.int64]) -> Ranked:
        """Rank."""
        with _explained():
            answer = self._client.rank(user_id, candidates, top_k=TOP_K)
        scores = answer.scores.astype(np.float64)
        return Ranked(scores, len(answer.failed), answer.top, answer.cache.source.name, answer.cache.encoded_tokens)

    def append(self, user_id: str, events: NDArray[np.void]) -> int:
        """AppendEvents."""
        with _explained():
            return self._client.append_events(user_id, events).history_len

    def prefill(self, user_id: str) -> None:
        """Prefill."""
        with _explained():
            self._client.prefill(user_id)

    def delete(self, user_id: str) -> None:
        """DeleteUser."""
        with _explained():
            self._client.delete_user(user_id)

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


class HttpCalls:
    """Satisfies `Calls` over one kept connection."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._http = HTTPClient.from_url(
            URL(url), concurrency=1, network_timeout=timeout_s, connection_timeout=_START_S
        )
        self._timeout_ms = str(max(1, round(timeout_s * 1e3)))

    def model(self) -> Served:
        """GET /v1/model."""
        reply = self._call("GET", "/v1/model")
        return Served(reply["version"], reply["max_candidates"], len(reply["actions"]))

    def rank(self, user_id: str, candidates: NDArray[np.int64]) -> Ranked:
        """POST /v1/rank. A score that is no finite number comes as null."""
        body = {"user_id": user_id, "candidates": candidates.tolist(), "top_k": TOP_K}
        reply = self._call("POST", "/v1/rank", user_id, body)
        cache = reply["cache"]
        return Ranked(
            np.array(reply["scores"], dtype=np.float64),
            len(reply["failed"]),
            np.array(reply["top"], dtype=np.int64),
            cache["source"],
            cache["encoded_tokens"],
        )

    def append(self, user_id: str, events: NDArray[np.void]) -> int:
        """POST /v1/users/.../events."""
        rows = [dict(zip(EVENT_DTYPE.names or (), event, strict=True)) for event in events.tolist()]
        return int(self._call("POST", f"/v1/users/{quote(user_id)}/events", user_id, {"events": rows})["history_len"])

    def prefill(self, user_id: str) -> None:
        """POST /v1/users/.../prefill."""
        self._call("POST", f"/v1/users/{quote(user_id)}/prefill", user_id, {})

    def delete(self, user_id: str) -> None:
        """DELETE /v1/users/..."""
        self._call("DELETE", f"/v1/users/{quote(user_id)}", user_id)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _call(self, method: str, path: str, user_id: str | None = None, body: object | None = None) -> dict[str, Any]:
        headers = {"content-type": "application/json", "x-request-timeout-ms": self._timeout_ms}
        if user_id is not None:
            headers[RANK_KEY] = rank_key(user_id)
        try:
            reply = self._http.request(method, path, b"" if body is None else json.dumps(body).encode(), headers)
            status, content = reply.status_code, bytes(reply.read())
        except TimeoutError as error:
            raise CallFailed("DEADLINE_EXCEEDED", "no answer in time") from error
        except (OSError, HTTPException) as error:
            raise CallFailed("UNAVAILABLE", type(error).__name__) from error
        try:
            answer: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise CallFailed(f"HTTP_{status}", "the body is no JSON") from error
        if status != 200:
            why = answer.get("error", {})
            raise CallFailed(why.get("code", f"HTTP_{status}"), why.get("message", "no details"))
        return answer


class _explained:
    """Turns an error of the client into CallFailed."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ClientError):
            raise CallFailed(error.code, error.details) from error
