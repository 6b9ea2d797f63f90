"""A server over HTTP; needs the extra `loadtest`. httpx takes about a millisecond of the driver's time a request."""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import orjson

from loadtest.load.target import SETUP_TIMEOUT_S, Scored, ServedModel
from mfalcon.errors import CallFailed
from mfalcon.types import EVENT_DTYPE, Events, Ids
from mfalcon_client import TokenFile

_JSON = {"content-type": "application/json"}
_MAX_CONNECTIONS = 512


class HttpTarget:
    """Satisfies `Target`. A body is a JSON object: a rank's lacks its opening, to which the user's field belongs."""

    def __init__(self, url: str, verify: ssl.SSLContext | bool = True, token: TokenFile | None = None) -> None:
        """verify: how TLS is spoken, where the address is https. token: that the server asks for."""
        self._token = token
        limits = httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS)
        self._http = httpx.AsyncClient(base_url=url, limits=limits, timeout=None, trust_env=False, verify=verify)

    def rank_body(self, candidates: Ids, request_time_ms: int) -> bytes:
        """The end of a body of /v1/rank."""
        body = {"candidates": candidates, "request_time_ms": request_time_ms}
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY).removeprefix(b"{")

    def append_body(self, events: Events) -> bytes:
        """A body of /v1/users/.../events."""
        names = EVENT_DTYPE.names or ()
        return orjson.dumps({"events": [dict(zip(names, event, strict=True)) for event in events.tolist()]})

    async def model(self) -> ServedModel:
        """GET /v1/model."""
        reply = await self._call("GET", "/v1/model")
        names = ("name", "version", "backend", "max_candidates")
        return ServedModel(**{name: reply[name] for name in names}, num_actions=len(reply["actions"]))

    async def rank(self, user_id: str, body: bytes, timeout_s: float | None) -> Scored:
        """POST /v1/rank."""
        content = b'{"user_id":' + orjson.dumps(user_id) + b"," + body
        headers = {} if timeout_s is None else {"x-request-timeout-ms": str(max(1, round(timeout_s * 1e3)))}
        reply = await self._call("POST", "/v1/rank", content, headers, timeout_s=None)
        # JSON has no NaN: what is not finite comes as null, which is NaN again here.
        scores = np.array(reply["scores"], dtype=np.float32)
        return Scored(scores, reply["cache"]["encoded_tokens"], len(reply["unknown"]), reply["model_version"])

    async def append(self, user_id: str, body: bytes) -> None:
        """POST /v1/users/.../events."""
        await self._call("POST", f"/v1/users/{quote(user_id)}/events", body)

    async def delete(self, user_id: str) -> None:
        """DELETE /v1/users/..."""
        await self._call("DELETE", f"/v1/users/{quote(user_id)}")

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _call(
        self,
        method: str,
        path: str,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = SETUP_TIMEOUT_S,
    ) -> dict[str, Any]:
        known = {} if self._token is None else {"authorization": f"Bearer {self._token()}"}
        try:
            reply = await self._http.request(
                method, path, content=content, headers=_JSON | known | dict(headers or {}), timeout=timeout_s
            )
        except httpx.HTTPError as error:
            raise CallFailed("UNAVAILABLE", f"{type(error).__name__}: {error}") from error
        try:
            answer: dict[str, Any] = orjson.loads(reply.content)
        except orjson.JSONDecodeError as error:
            raise CallFailed(f"HTTP_{reply.status_code}", "the body is no JSON") from error
        if reply.status_code != httpx.codes.OK:
            why = answer.get("error", {})
            raise CallFailed(why.get("code", f"HTTP_{reply.status_code}"), why.get("message", "no details"))
        return answer
