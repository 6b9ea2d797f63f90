"""The door of both transports: credentials in, a caller out.

A server without a file of callers or of keys looks at nothing: everybody may do everything, and a request pays nothing
for it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from mfalcon.beside import beside
from mfalcon.errors import ConfigError, Unauthenticated
from server.access.caller import ANYBODY, Caller
from server.access.callers_file import NOBODY, Callers, Grant, moment, parse_callers
from server.access.gate import Gate
from server.access.quota import Quota
from server.access.watched import Watched
from server.peer_names import Names
from server.settings.access import AccessSettings

if TYPE_CHECKING:
    from server.access.json_web_tokens import JwtVerifier, Keys

MAX_TOKEN_CHARS: Final = 8_192
"""A token of ours has 47, a JWT a few hundred to some thousands."""
LOOK_SECONDS: Final = 2.0
"""Time between two looks at the files."""
_NEEDED: Final = "must be 'Bearer TOKEN'"


class Access:
    """Who may ask. Lives on one event loop. gate: what it knows of callers who are over a limit."""

    def __init__(self, settings: AccessSettings | None = None) -> None:
        """settings: None for everybody. Raises ConfigError for a file that cannot be used."""
        settings = settings or AccessSettings()
        self.gate = Gate()
        self._looking = asyncio.Lock()
        self._accepted: dict[int, tuple[bytes, Grant]] = {}
        """Headers with one of our tokens, by the hash that Python has of a text, which a secret of this process keys.
        Between two ranks it is code that takes the time, not hashing: this is less of it (docs/LOG.md)."""
        self._told: Callable[[Mapping[str, Quota]], None] = lambda quotas: None
        self._file: Watched[Callers] | None = None
        self._jwt: JwtVerifier | None = None
        self._keys: Watched[Keys] | None = None
        if settings.tokens_file is not None:
            self._file = Watched("tokens_file", settings.tokens_file, lambda raw: parse_callers(raw, time.time()))
        if settings.jwks_file is not None:
            self._jwt, self._keys = _jwt_parts(settings)

    @property
    def is_on(self) -> bool:
        """Whether credentials are looked at."""
        return self._file is not None or self._keys is not None

    def caller(self, authorization: str | None, certificate: Names = ()) -> Caller:
        """Who asks. authorization: the header or metadata of that name, None without one; it decides where there is
        one. certificate: the names of the client's certificate, which was verified. Raises Unauthenticated.
        """
        if not self.is_on:
            return ANYBODY
        if authorization is not None:
            accepted = self._accepted.get(hash(authorization))
            if accepted is not None and compare_digest(accepted[0], authorization.encode()):
                grant = accepted[1]
                if grant.expires is None or time.time() < grant.expires:
                    return grant.caller
        callers = NOBODY if self._file is None else self._file.value
        if authorization is not None:
            return self._of_token(authorization, callers)
        for name in certificate:
            caller = callers.certificates.get(name)
            if caller is not None:
                return caller
        if certificate:
            raise Unauthenticated(f"authorization: got none, {_NEEDED}: the client's certificate is no caller's")
        raise Unauthenticated(f"authorization: got none, {_NEEDED}")

    def _of_token(self, authorization: str, callers: Callers) -> Caller:
        token = token_of(authorization)
        digest = sha256(token.encode()).digest()
        grant = callers.tokens.get(digest)
        if grant is None or not compare_digest(grant.digest, digest):
            if self._jwt is not None and self._keys is not None and token.count(".") == 2:
                return self._jwt.caller(token, self._keys.value, callers.subjects, time.time())
            raise Unauthenticated("authorization: the token is not valid", had_token=True)
        if grant.expires is not None and grant.expires <= time.time():
            text = f"authorization: the token of caller {grant.caller.name} has expired at {moment(grant.expires)}"
            raise Unauthenticated(text, had_token=True)
        if authorization == f"Bearer {token}":  # so that there is one of each token
            self._accepted[hash(authorization)] = authorization.encode(), grant
        return grant.caller

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """Of every caller of the file, by name."""
        return {} if self._file is None else self._file.value.quotas

    def when_read(self, told: Callable[[Mapping[str, Quota]], None]) -> None:
        """Have the quotas told now, and whenever the file was read again."""
        self._told = told
        told(self.quotas)

    def look(self) -> None:
        """Read the files again, and wait for the disk. If one is damaged the log says so, and what was read before
        stays in force.
        """
        for take in self._fresh():
            take()

    async def look_beside(self) -> None:
        """The same, and only who awaits this waits for the disk."""
        async with self._looking:
            for take in await beside(self._fresh):
                take()

    async def watch(self) -> None:
        """Look again every `LOOK_SECONDS`, for ever."""
        while self.is_on:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look_beside()

    def _fresh(self) -> list[Callable[[], None]]:
        """What has changed, to be taken on the event loop."""
        changes: list[Callable[[], None]] = []
        if self._file is not None and (callers := self._file.fresh()) is not None:
            changes.append(partial(self._file.take, callers))
        if self._keys is not None and (keys := self._keys.fresh()) is not None:
            changes.append(partial(self._keys.take, keys))
        return [*changes, self._changed] if changes else []

    def _changed(self) -> None:
        if self._jwt is not None:
            self._jwt.forget()
        self._accepted.clear()
        self.gate.open()
        self._told(self.quotas)


def _jwt_parts(settings: AccessSettings) -> "tuple[JwtVerifier, Watched[Keys]]":
    try:
        from server.access.json_web_tokens import JwtOptions, JwtVerifier, parse_keys  # noqa: PLC0415 (the extra: jwt)
    except ImportError as error:
        raise ConfigError("jwks_file: needs the extra: pip install -e '.[jwt]'") from error
    assert settings.jwks_file is not None and settings.jwt_issuer is not None and settings.jwt_audience is not None
    options = JwtOptions(
        settings.jwt_issuer,
        settings.jwt_audience,
        settings.jwt_rights_claim,
        settings.rights_of_claims,
        settings.jwt_leeway_s,
    )
    return JwtVerifier(options), Watched("jwks_file", settings.jwks_file, parse_keys)


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
