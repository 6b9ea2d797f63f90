"""The file of callers: TOML that says who may do what, and by which tokens and certificates each is known.

    [[callers]]
    name = "web"
    rights = ["rank", "append"]

    [[callers.tokens]]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    expires = 2027-06-30T00:00:00Z

    [[callers.certificates]]
    uri = "spiffe://example.org/web"

It holds hashes, not tokens, so that who reads it can ask nothing. A token is 256 random bits: nobody finds one by
trying, so the hash need not be slow, as that of a password must.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from mfalcon.errors import ConfigError
from server.access.caller import Caller, Right, held
from server.access.quota import Quota
from server.explain import field_name

MAX_CALLERS: Final = 1_000
MAX_CREDENTIALS: Final = 100
"""Of one caller and kind."""
NAME_PATTERN = "^[A-Za-z0-9._-]{1,64}$"
NAME = "1 to 64 of the characters A-Z a-z 0-9 . _ -"
SHA256 = "^[0-9a-f]{64}$"
_MUST = {
    NAME_PATTERN: NAME,
    SHA256: "64 hex digits (0-9, a-f), the SHA-256 of a token; `mfalcon token new` makes both",
}
_TYPES = {
    "missing": "given",
    "extra_forbidden": "absent: there is no such key",
    "timezone_aware": "a time with an offset, as 2027-06-30T00:00:00Z",
    "enum": f"one of {', '.join(Right)}",
}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class _Token(_Table):
    sha256: Annotated[str, Field(pattern=SHA256)]
    expires: AwareDatetime | None = None


class _Certificate(_Table):
    uri: str | None = Field(default=None, min_length=1, max_length=2_048)
    dns: str | None = Field(default=None, min_length=1, max_length=253)
    cn: str | None = Field(default=None, min_length=1, max_length=64)

    @model_validator(mode="after")
    def _has_one_name(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("must have one of uri, dns and cn")
        return self

    @property
    def name(self) -> tuple[str, str]:
        kind = next(iter(self.model_fields_set))
        return kind, str(getattr(self, kind))


_Subject = Annotated[str, Field(min_length=1, max_length=1_024)]


class _Caller(_Table):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    rights: Annotated[tuple[Right, ...], Field(min_length=1, max_length=32)]
    tokens: Annotated[tuple[_Token, ...], Field(max_length=MAX_CREDENTIALS)] = ()
    certificates: Annotated[tuple[_Certificate, ...], Field(max_length=MAX_CREDENTIALS)] = ()
    subjects: Annotated[tuple[_Subject, ...], Field(max_length=MAX_CREDENTIALS)] = ()
    requests_per_s: Annotated[float, Field(ge=0.001, le=1e9)] | None = None
    request_burst: Annotated[int, Field(ge=1, le=10**9)] | None = None
    candidates_per_s: Annotated[float, Field(ge=0.001, le=1e12)] | None = None
    candidate_burst: Annotated[int, Field(ge=1, le=10**12)] | None = None
    candidates_per_day: Annotated[int, Field(ge=1, le=10**15)] | None = None
    max_concurrent: Annotated[int, Field(ge=1, le=10**6)] | None = None

    @model_validator(mode="after")
    def _bursts_are_of_rates(self) -> Self:
        for burst, rate in (("request_burst", "requests_per_s"), ("candidate_burst", "candidates_per_s")):
            if getattr(self, burst) is not None and getattr(self, rate) is None:
                raise ValueError(f"{burst}: must not be given without {rate}")
        return self

    @property
    def quota(self) -> Quota:
        return Quota(
            self.requests_per_s,
            self.request_burst,
            self.candidates_per_s,
            self.candidate_burst,
            self.candidates_per_day,
            self.max_concurrent,
        )


class _File(_Table):
    callers: Annotated[tuple[_Caller, ...], Field(max_length=MAX_CALLERS)] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token grants: to whom, and until when, in seconds since 1970; None for ever."""

    digest: bytes
    caller: Caller
    expires: float | None


@dataclass(frozen=True, slots=True)
class Callers:
    """What a file of callers says. tokens: by the SHA-256 of the token. certificates: by kind and name.
    subjects: by the subject of a JSON Web Token. quotas: by
    name of the caller, for every one.
    """

    tokens: Mapping[bytes, Grant]
    certificates: Mapping[tuple[str, str], Caller]
    subjects: Mapping[str, Caller]
    quotas: Mapping[str, Quota]


NOBODY: Final = Callers({}, {}, {}, {})


def is_name(text: str) -> bool:
    """Whether a caller may have this name."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def parse_callers(contents: bytes, now: float) -> Callers:
    """What the contents of a file say. ConfigError names the place and what must be there, and quotes no value:
    somebody may have written the token itself in the place of its hash. now: seconds since 1970.
    """
    try:
        tables = tomllib.loads(contents.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"byte {error.start}: must be UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at ([^()]*)\)$", str(error))
        raise ConfigError(f"{place[1] if place else 'its text'}: must be TOML") from None
    except RecursionError:
        raise ConfigError("must be TOML of few levels") from None
    try:
        file = _File.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(f"{_complaint(error.errors(include_url=False, include_input=False)[0])}") from None
    return _callers(file, now)


def _complaint(details: ErrorDetails) -> str:
    where = field_name(details["loc"])
    match details["type"]:
        case "string_pattern_mismatch":
            must = _MUST[details["ctx"]["pattern"]]
        case "value_error":
            return f"{where}: {details['ctx']['error']}"
        case kind if kind in _TYPES:
            must = _TYPES[kind]
        case _:
            must = details["msg"].removeprefix("Input should be ")
    return f"{where}: must be {must}"


def _callers(file: _File, now: float) -> Callers:
    tokens: dict[bytes, Grant] = {}
    certificates: dict[tuple[str, str], Caller] = {}
    subjects: dict[str, Caller] = {}
    names = [entry.name for entry in file.callers]
    if (twice := _first_twice(names)) is not None:
        raise ConfigError(
            f"callers[{twice}].name: got {names[twice]!r} again, must be a name that is given once: a caller's next "
            "token is a [[callers.tokens]] table below its first"
        )
    for number, entry in enumerate(file.callers):
        caller = Caller(entry.name, held(frozenset(entry.rights)))
        for at, token in enumerate(entry.tokens):
            digest = bytes.fromhex(token.sha256)
            if digest in tokens:
                raise ConfigError(f"callers[{number}].tokens[{at}].sha256: must be a hash that is given once")
            tokens[digest] = Grant(digest, caller, None if token.expires is None else token.expires.timestamp())
        for at, certificate in enumerate(entry.certificates):
            if certificate.name in certificates:
                where = f"callers[{number}].certificates[{at}]"
                raise ConfigError(f"{where}: must be a name of a certificate that is given once")
            certificates[certificate.name] = caller
        for at, subject in enumerate(entry.subjects):
            if subject in subjects:
                raise ConfigError(f"callers[{number}].subjects[{at}]: must be a subject that is given once")
            subjects[subject] = caller
    if (
        not certificates
        and not subjects
        and all(grant.expires is not None and grant.expires <= now for grant in tokens.values())
    ):
        what = "every token in it has expired" if tokens else "it has no token, certificate or subject"
        raise ConfigError(f"grants nothing to anybody: {what}")
    return Callers(tokens, certificates, subjects, {entry.name: entry.quota for entry in file.callers})


def _first_twice(names: Iterable[str]) -> int | None:
    seen: set[str] = set()
    for number, name in enumerate(names):
        if name in seen:
            return number
        seen.add(name)
    return None


def moment(seconds: float) -> str:
    """A time since 1970 as people read it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
