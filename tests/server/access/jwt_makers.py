"""Makers of JSON Web Tokens for tests: good ones, and every kind of bad one."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE = "https://id.example", "mfalcon"


@cache
def private_keys() -> Mapping[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey]:
    """By kid, which is the algorithm that they sign with here."""
    return {
        "RS256": rsa.generate_private_key(65_537, 2_048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }


def public_key(name: str) -> dict[str, object]:
    """What a JWKS holds of a key."""
    algorithm = jwt.get_algorithm_by_name(name)
    entry: dict[str, object] = json.loads(algorithm.to_jwk(private_keys()[name].public_key()))
    return entry | {"kid": name, "use": "sig"}


def jwks(*entries: Mapping[str, object]) -> str:
    return json.dumps({"keys": list(entries)})


def claims(**changed: object) -> dict[str, object]:
    """Good ones but for these; None leaves one out."""
    now = int(time.time())
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "svc", "exp": now + 600, "iat": now, "scope": "openid mfalcon:rank"}
    return {name: value for name, value in (good | changed).items() if value is not None}


def signed(name: str = "RS256", headers: Mapping[str, object] | None = None, **changed: Any) -> str:
    return jwt.encode(claims(**changed), private_keys()[name], algorithm=name, headers={"kid": name, **(headers or {})})


def raw(header: Mapping[str, object], body: bytes, signature: bytes = b"x") -> str:
    parts = (json.dumps(header).encode(), body, signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def with_hmac_of_the_public_key() -> str:
    """The old attack: the public key as the secret of HS256."""
    pem = (
        private_keys()["RS256"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    signing = raw({"alg": "HS256", "kid": "RS256"}, json.dumps(claims()).encode()).rpartition(".")[0]
    mac = hmac.digest(pem, signing.encode(), hashlib.sha256)
    return f"{signing}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


GOOD: Mapping[str, Callable[[], str]] = {
    "RSA": signed,
    "elliptic": lambda: signed("ES256"),
    "Edwards": lambda: signed("EdDSA"),
    "several audiences": lambda: signed(aud=["other", AUDIENCE]),
    "a list of rights": lambda: signed(scope=["mfalcon:rank", 7]),
    "expired within the leeway": lambda: signed(exp=int(time.time()) - 5),
}
BAD: Mapping[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: signed(exp=int(time.time()) - 60), "it has expired"),
    "not yet valid": (lambda: signed(nbf=int(time.time()) + 60), "it is not valid yet"),
    "issued in the future": (lambda: signed(iat=int(time.time()) + 60), "it is not valid yet"),
    "wrong audience": (lambda: signed(aud="other"), "it is for another audience"),
    "no audience": (lambda: signed(aud=None), "it "),
    "wrong issuer": (lambda: signed(iss="https://evil.example"), "it is of another issuer"),
    "no issuer": (lambda: signed(iss=None), "it lacks a claim"),
    "no end": (lambda: signed(exp=None), "it lacks a claim"),
    "no subject": (lambda: signed(sub=None), "it lacks a claim"),
    "an end beyond all times": (lambda: signed(exp=float("inf")), "it is malformed"),
    "wrong kid": (lambda: signed(headers={"kid": "other"}), "it names no key of this server"),
    "no kid": (lambda: raw({"alg": "RS256"}, b"{}"), "it names no key of this server"),
    "another key's kid": (lambda: signed("ES256", {"kid": "RS256"}), "its algorithm is not one of its key"),
    "alg none": (lambda: raw({"alg": "none", "kid": "RS256"}, json.dumps(claims()).encode(), b""), "its algorithm"),
    "HS256 with the public key": (with_hmac_of_the_public_key, "its algorithm is not one of its key"),
    "a changed body": (
        lambda: ".".join((signed().split(".")[0], signed(scope="mfalcon:admin").split(".")[1], signed().split(".")[2])),
        "its signature is wrong",
    ),
    "critical extensions": (lambda: signed(headers={"crit": ["x"], "x": 1}), "it "),
    "a key of its own": (
        lambda: raw({"alg": "RS256", "jwk": public_key("RS256"), "jku": "http://evil"}, b"{}"),
        "it names no key",
    ),
    "no JSON": (lambda: "a.b.c", "it is malformed"),
    "depth": (lambda: f"{base64.urlsafe_b64encode(b'[' * 4_000).decode()}.b.c", "it is malformed"),
    "empty parts": (lambda: "..", "it is malformed"),
}
