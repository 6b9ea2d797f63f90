"""The door of both transports: credentials in, a caller out.

A server without a file of callers looks at nothing: everybody may do everything, and a request pays nothing for it.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

from mfalcon.errors import ConfigError, Unauthenticated
from server.access.caller import ANYBODY, Caller
from server.access.callers_file import Callers, moment, parse_callers, read_bytes
from server.access.gate import Gate
from server.access.quota import Quota
from server.settings.access import AccessSettings

logger = logging.getLogger(__name__)

MAX_TOKEN_CHARS: Final = 8_192
"""A token of ours has 47, a JWT a few hundred to some thousands."""
LOOK_SECONDS: Final = 2.0
"""Time between two looks at the files."""
_NEEDED: Final = "must be 'Bearer TOKEN'"

Names = tuple[tuple[str, str], ...]
"""Names in a client's certificate that was verified: (kind, name) with the kinds uri, dns and cn."""


class Access:
    """Who may ask. Lives on one event loop. gate: what it knows of callers who are over a limit."""

    def __init__(self, callers_file: Path | None) -> None:
        """Raises ConfigError for a file that cannot be used."""
        self._path = callers_file
        self._callers = Callers({}, {}, {})
        self._told: Callable[[Mapping[str, Quota]], None] = lambda quotas: None
        self.gate = Gate()
        self._contents = b""
        self._refused: bytes | str = b""
        """The contents, or why there were none, that were refused last: it is said once."""
        if callers_file is not None:
            self._contents = read_bytes(callers_file)
            self._callers = parse_callers(self._contents, callers_file, time.time())

    @classmethod
    def of(cls, settings: AccessSettings) -> Self:
        """As the settings say. Raises ConfigError."""
        return cls(settings.tokens_file)

    @property
    def is_on(self) -> bool:
        """Whether credentials are looked at."""
        return self._path is not None

    def caller(self, authorization: str | None, certificate: Names = ()) -> Caller:
        """Who asks. authorization: the header or metadata of that name, None without one; it decides where there is
        one. certificate: see `Names`. Raises Unauthenticated.
        """
        if not self.is_on:
            return ANYBODY
        if authorization is not None:
            return self._of_token(token_of(authorization))
        for name in certificate:
            caller = self._callers.certificates.get(name)
            if caller is not None:
                return caller
        if certificate:
            raise Unauthenticated(f"authorization: got none, {_NEEDED}: the client's certificate is no caller's")
        raise Unauthenticated(f"authorization: got none, {_NEEDED}")

    def _of_token(self, token: str) -> Caller:
        digest = sha256(token.encode()).digest()
        grant = self._callers.tokens.get(digest)
        if grant is None or not hmac.compare_digest(grant.digest, digest):
            raise Unauthenticated("authorization: the token is not valid", had_token=True)
        if grant.expires is not None and grant.expires <= time.time():
            text = f"authorization: the token of caller {grant.caller.name} has expired at {moment(grant.expires)}"
            raise Unauthenticated(text, had_token=True)
        return grant.caller

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """Of every caller, by name."""
        return self._callers.quotas

    def when_read(self, told: Callable[[Mapping[str, Quota]], None]) -> None:
        """Have the quotas told now, and whenever the file was read again."""
        self._told = told
        told(self.quotas)

    def look(self) -> None:
        """Read the file again. If it is damaged the log says so, and what was read before stays in force."""
        self._take(self._fresh())

    async def watch(self) -> None:
        """Look again every `LOOK_SECONDS`, for ever."""
        while self.is_on:
            await asyncio.sleep(LOOK_SECONDS)
            self._take(await asyncio.to_thread(self._fresh))

    def _take(self, fresh: tuple[bytes, Callers] | None) -> None:
        if fresh is None:
            return
        self._contents, self._callers = fresh
        self._told(self.quotas)
        logger.info("tokens_file: %s was read again: %d callers", self._path, len(self.quotas))

    def _fresh(self) -> tuple[bytes, Callers] | None:
        """What is in the file now; None where that is nothing new, or nothing good."""
        if self._path is None:
            return None
        contents: bytes | str = b""
        try:
            contents = read_bytes(self._path)
            if contents == self._contents:
                self._refused = b""
                return None
            callers = parse_callers(contents, self._path, time.time())
        except ConfigError as error:
            seen = contents or str(error)
            if seen != self._refused:
                logger.error("%s; what it said before stays in force", error)
            self._refused = seen
            return None
        self._refused = b""
        return contents, callers


def token_of(authorization: str) -> str:
    """The bearer token of a header. Raises Unauthenticated, and quotes nothing of it."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated(f"authorization: got another scheme, {_NEEDED}")
    token = token.strip(" ")
    if not token or len(token) > MAX_TOKEN_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        text = f"authorization: must be 'Bearer ' and 1 to {MAX_TOKEN_CHARS} printable characters without a space"
        raise Unauthenticated(text, had_token=True)
    return token
