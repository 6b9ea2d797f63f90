"""Any bytes as a JSON Web Token, as claims that are rightly signed, or as the keys that tokens are signed with.

The first byte is which.
"""

import base64
from functools import cache

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mfalcon.errors import ConfigError, Unauthenticated
from server.access.caller import Right
from server.access.json_web_tokens import JwtOptions, JwtVerifier, Keys, parse_keys

NOW = 1_800_000_000.0
OPTIONS = JwtOptions("https://id.example", "mfalcon", "scope", {"mfalcon:rank": (Right.RANK,)}, 30.0)
CLAIMS = {
    "iss": OPTIONS.issuer,
    "aud": OPTIONS.audience,
    "sub": "web",
    "exp": 4_000_000_000,
    "iat": 1_700_000_000,
    "scope": "mfalcon:rank",
}


@cache
def private() -> Ed25519PrivateKey:
    """The same in every run."""
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@cache
def keys() -> Keys:
    """What the server knows of it."""
    return parse_keys(jwks())


def jwks() -> bytes:
    """The file of that."""
    x = text(private().public_key().public_bytes_raw())
    return orjson.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "1", "use": "sig", "x": x}]})


def text(raw: bytes) -> str:
    """As tokens have it."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(claims: bytes) -> str:
    """A token with these claims."""
    head = ".".join((text(b'{"alg":"EdDSA","kid":"1"}'), text(claims)))
    return f"{head}.{text(private().sign(head.encode()))}"


def seeds() -> list[bytes]:
    """A good token, one of no algorithm, good claims, and keys of each kind."""
    claims = orjson.dumps(CLAIMS)
    nothing = f"{text(b'{}')}.{text(claims)}."
    rsa = b'{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"oct","k":"AA"},{"kty":"EC","crv":"P-256","x":"A"}]}'
    late = orjson.dumps(CLAIMS | {"exp": 1, "nbf": 2**40, "scope": ["mfalcon:rank", 7]})
    return [
        b"\0" + signed(claims).encode(),
        b"\0" + nothing.encode(),
        b"\1" + claims,
        b"\1" + late,
        b"\2" + jwks(),
        b"\2" + rsa,
    ]


def target(data: bytes) -> None:
    """A caller whose claims are those that must be there, or a refusal that quotes nothing."""
    if not data:
        return
    kind, rest = data[0] % 3, data[1:]
    try:
        if kind == 2:
            parse_keys(rest)
            return
        token = signed(rest) if kind == 1 else rest.decode("latin-1")
        caller = JwtVerifier(OPTIONS).caller(token, keys(), {}, NOW)
    except ConfigError:
        assert kind == 2
        return
    except Unauthenticated as error:
        assert kind != 2 and OPTIONS.issuer not in str(error)
        return
    claims = orjson.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["iss"] == OPTIONS.issuer and caller.rights <= {Right.RANK}
