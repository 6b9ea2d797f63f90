"""Callers whom somebody else vouches for: JSON Web Tokens (RFC 7519), signed with a key of the JWKS file (RFC 7517).

A token is a bearer's: who has it may use it until it expires, as often as he likes. No list of those seen (`jti`) is
kept: replicas would have to share it, and a rank may be repeated by right. Short lives and TLS bound a
replay.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import jwt
import orjson
from cachetools import TTLCache
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from mfalcon.errors import ConfigError, Unauthenticated
from server.access.caller import Caller, Right, held

ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "Ed25519": ("EdDSA",),
}
"""By kind of key, all asymmetric: what the token says of its algorithm never chooses another kind of key."""
MAX_KEYS: Final = 100
MIN_RSA_BITS, MAX_RSA_BITS = 2_048, 8_192
"""A key of 16,384 bits takes a millisecond for each token."""
CACHED: Final = 10_000
CACHE_SECONDS: Final = 60.0
"""Longest time for which a token that was verified is taken without a look at its signature; never beyond its end."""
ANY_SUBJECT: Final = "jwt"
"""The caller's name of all subjects that the file of callers does not name."""
_MALFORMED = (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError)
_REASONS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "it has expired",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.InvalidAudienceError: "it is for another audience",
    jwt.InvalidIssuerError: "it is of another issuer",
    jwt.MissingRequiredClaimError: "it lacks a claim: exp, sub, iss and aud must be there",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAlgorithmError: "its algorithm is not one of its key",
}


@dataclass(frozen=True, slots=True)
class Key:
    """A public key, and the algorithms that it is for."""

    key: Any
    algorithms: tuple[str, ...]


Keys = Mapping[str, Key]
"""By `kid`, "" for the only one without."""


@dataclass(frozen=True, slots=True)
class JwtOptions:
    """issuer, audience: what a token must name. rights_claim: where its rights are: a list, or text with spaces; a name
    with dots is looked for as it is, and then as a path. rights: what a value there means. leeway_s: by which clocks
    may differ.
    """

    issuer: str
    audience: str
    rights_claim: str
    rights: Mapping[str, Collection[Right]]
    leeway_s: float


def parse_keys(contents: bytes) -> Keys:
    """The keys of a JWKS file. ConfigError names the place; it quotes no key."""
    try:
        entries = orjson.loads(contents)["keys"]
        assert isinstance(entries, list)
    except (orjson.JSONDecodeError, KeyError, TypeError, AssertionError):
        raise ConfigError('must be a JSON object with a list "keys" (RFC 7517)') from None
    if not 1 <= len(entries) <= MAX_KEYS:
        raise ConfigError(f"keys: got {len(entries)}, must be 1 to {MAX_KEYS}")
    keys: dict[str, Key] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ConfigError(f"keys[{number}]: must be an object")
        if entry.get("use", "sig") != "sig":
            continue
        name = entry.get("kid", "")
        if not isinstance(name, str) or name in keys:
            raise ConfigError(f"keys[{number}].kid: must be a text that is given once")
        keys[name] = _key(entry, f"keys[{number}]")
    if not keys:
        raise ConfigError('keys: must have one whose use is "sig"')
    if "" in keys and len(keys) > 1:
        raise ConfigError("keys: one has no kid, which must be there where there are several")
    return keys


def _key(entry: Mapping[str, object], where: str) -> Key:
    if entry.get("kty") == "oct":
        raise ConfigError(f"{where}.kty: got oct, must be RSA, EC or OKP: a secret that signs is no public key")
    if "d" in entry:
        raise ConfigError(f"{where}: holds a private key, must be a public one")
    kind = "RSA" if entry.get("kty") == "RSA" else entry.get("crv")
    algorithms = ALGORITHMS.get(kind) if isinstance(kind, str) else None
    if algorithms is None or entry.get("kty") not in ("RSA", "EC", "OKP"):
        raise ConfigError(f"{where}: must be an RSA key or one on {', '.join(set(ALGORITHMS) - {'RSA'})}")
    if "alg" in entry:
        algorithms = tuple(name for name in algorithms if name == entry["alg"])
        if not algorithms:
            raise ConfigError(f"{where}.alg: must be one of {', '.join(ALGORITHMS[str(kind)])}")
    try:
        key = jwt.PyJWK(dict(entry), algorithm=algorithms[0]).key
    except _MALFORMED:
        raise ConfigError(f"{where}: must be a key (RFC 7518)") from None
    if isinstance(key, RSAPublicKey) and not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise ConfigError(f"{where}: got {key.key_size} bits, must be {MIN_RSA_BITS} to {MAX_RSA_BITS}")
    return Key(key, algorithms)


class JwtVerifier:
    """Verifies tokens. One that was verified is known again for a while, by its hash."""

    def __init__(self, options: JwtOptions, cache_seconds: float = CACHE_SECONDS) -> None:
        self._options = options
        self._known: TTLCache[bytes, tuple[Caller, float]] = TTLCache(CACHED, cache_seconds)

    def forget(self) -> None:
        """Look at every token anew: keys or callers have changed."""
        self._known.clear()

    def caller(self, token: str, keys: Keys, subjects: Mapping[str, Caller], now: float) -> Caller:
        """Who a token stands for. subjects: callers by the subject that is theirs. now: seconds since 1970. Raises
        Unauthenticated, and quotes nothing of it.
        """
        digest = sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is None:
            known = self._known[digest] = self._verified(token, keys, subjects)
        elif known[1] + self._options.leeway_s <= now:
            raise _invalid(_REASONS[jwt.ExpiredSignatureError])
        return known[0]

    def _verified(self, token: str, keys: Keys, subjects: Mapping[str, Caller]) -> tuple[Caller, float]:
        options = self._options
        try:
            header = jwt.get_unverified_header(token)
            name = header.get("kid", "")
            key = next(iter(keys.values())) if not name and len(keys) == 1 else keys.get(name)
            if key is None:
                raise _invalid("it names no key of this server")
            if "crit" in header:
                raise _invalid("it wants extensions that this server does not know")
            claims = jwt.decode(
                token,
                key.key,
                algorithms=list(key.algorithms),
                audience=options.audience,
                issuer=options.issuer,
                leeway=options.leeway_s,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
            caller = self._caller(claims, subjects)
            return caller, float(claims["exp"])
        except _MALFORMED as error:
            reason = next((text for kind, text in _REASONS.items() if isinstance(error, kind)), "it is malformed")
            raise _invalid(reason) from None

    def _caller(self, claims: Mapping[str, Any], subjects: Mapping[str, Caller]) -> Caller:
        options = self._options
        value = _claim(claims, options.rights_claim)
        words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
        granted = {right for word in words if isinstance(word, str) for right in options.rights.get(word, ())}
        rights = held(frozenset(granted))
        known = subjects.get(str(claims["sub"]))
        if known is None:
            return Caller(ANY_SUBJECT, rights)
        return Caller(known.name, rights & known.rights)


def _claim(claims: Mapping[str, Any], name: str) -> object:
    if name in claims:
        return claims[name]
    value: object = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _invalid(reason: str) -> Unauthenticated:
    return Unauthenticated(f"authorization: the JWT is not valid: {reason}", had_token=True)
