"""JSON Web Tokens: what a key of the file has signed for us, now, is a caller; nothing else is."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.errors import ConfigError, Unauthenticated
from server.access.access import Access
from server.access.json_web_tokens import JwtOptions, JwtVerifier, parse_keys
from server.settings.access import AccessSettings
from tests.server.access.credentials import CALLS, bearer, by_grpc, by_http, table, token, written
from tests.server.access.jwt_makers import AUDIENCE, BAD, GOOD, ISSUER, jwks, private_keys, public_key, raw, signed
from tests.server.harness import serving

RANK = CALLS["rank"]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, object]:
    """Settings of a server with keys, and a caller that a subject is."""
    keys = tmp_path / "jwks.json"
    keys.write_text(jwks(*(public_key(name) for name in private_keys())))
    callers = written(
        tmp_path / "callers.toml",
        table("web", ["rank", "append"], [(token("web"), None)], more='subjects = ["svc-web"]'),
    )
    return {"tokens_file": callers, "jwks_file": keys, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}


def access_of(files: Mapping[str, object], **more: object) -> Access:
    return Access(AccessSettings.model_validate({**files, **more}))


def test_what_is_signed_for_us_now_is_a_caller(files: dict[str, object]) -> None:
    access = access_of(files)
    for shown, make in GOOD.items():
        made = make()
        for _ in range(2):  # the second time it is known
            caller = access.caller(bearer(made))
            assert (caller.name, sorted(caller.rights)) == ("jwt", ["rank"]), shown


def test_nothing_else_is(files: dict[str, object]) -> None:
    access = access_of(files)
    for shown, (make, says) in BAD.items():
        made = make()
        for _ in range(2):
            with pytest.raises(Unauthenticated) as refused:
                access.caller(bearer(made))
            assert str(refused.value).startswith(f"authorization: the JWT is not valid: {says}"), (shown, refused.value)
            assert refused.value.__cause__ is None and made[:12] not in str(refused.value)
    with pytest.raises(Unauthenticated, match="must be 'Bearer ' and 1 to 8192"):
        access.caller(bearer(signed(scope="x" * 9_000)))


async def test_both_transports_and_front_ends_take_it(files: dict[str, object]) -> None:
    async with serving(frontends=1, **files) as running:
        for way in (by_grpc, by_http):
            assert await way(running, RANK, bearer(signed())) == ("OK", "")
            assert await way(running, RANK, bearer(token("web"))) == ("OK", "")
            assert (await way(running, CALLS["append"], bearer(signed())))[0] == "PERMISSION_DENIED"
            assert (await way(running, RANK, bearer(signed(aud="other"))))[0] == "UNAUTHENTICATED"


def test_a_subject_of_the_file_has_its_name_and_no_more_than_its_rights(files: dict[str, object]) -> None:
    access = access_of(files)
    caller = access.caller(bearer(signed(sub="svc-web", scope="mfalcon:admin")))
    assert (caller.name, sorted(caller.rights)) == ("web", ["append", "rank"])
    caller = access.caller(bearer(signed(sub="svc-web", scope="mfalcon:read")))
    assert (caller.name, sorted(caller.rights)) == ("web", [])


@pytest.mark.parametrize(
    ("claim", "body"),
    [
        ("roles", {"roles": ["ranker"]}),
        ("realm_access.roles", {"realm_access": {"roles": ["ranker"]}}),
        ("https://x.example/roles", {"https://x.example/roles": "ranker other"}),
    ],
)
def test_rights_come_from_a_claim(files: dict[str, object], claim: str, body: dict[str, Any]) -> None:
    access = access_of(files, jwt_rights_claim=claim, jwt_rights="ranker=rank ranker=read a=b=append")
    assert sorted(access.caller(bearer(signed(**body))).rights) == ["rank", "read"]
    nothing: list[dict[str, Any]] = [{}, {"roles": 7}, {"realm_access": ["roles"]}]
    for other in nothing:
        assert not access.caller(bearer(signed(**{"sub": f"{other}", **other}))).rights


def test_a_key_that_leaves_the_file_opens_nothing_more(files: dict[str, object]) -> None:
    access, made = access_of(files), signed()
    assert access.caller(bearer(made)).name == "jwt"
    keys = Path(str(files["jwks_file"]))
    keys.write_text("{")
    access.look()
    assert access.caller(bearer(made)).name == "jwt"
    keys.write_text(jwks(public_key("ES256")))
    access.look()
    with pytest.raises(Unauthenticated, match="it names no key"):
        access.caller(bearer(made))


def bad_sets() -> Iterator[tuple[str, str]]:
    """A JWKS, and what is said of it."""
    good = public_key("ES256")
    yield "", "must be a JSON object"
    yield "[]", "must be a JSON object"
    yield jwks(), "keys: got 0, must be 1 to 100"
    yield jwks({"kty": "oct", "k": "c2VjcmV0", "kid": "a"}), r"keys\[0\].kty: got oct, must be RSA, EC or OKP"
    yield jwks(good | {"d": "AAAA"}), r"keys\[0\]: holds a private key"
    yield jwks(good, good), r"keys\[1\].kid: must be a text that is given once"
    yield jwks(good | {"crv": "secp256k1"}), r"keys\[0\]: must be an RSA key or one on"
    yield jwks(good | {"alg": "HS256"}), r"keys\[0\].alg: must be one of ES256"
    yield jwks(good | {"x": "AAAA"}), r"keys\[0\]: must be a key"
    yield jwks(good | {"use": "enc"}), 'keys: must have one whose use is "sig"'
    yield (
        jwks(good, {name: value for name, value in public_key("EdDSA").items() if name != "kid"}),
        "keys: one has no kid",
    )
    small = rsa.generate_private_key(65_537, 1_024).public_key()
    yield jwks(json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(small))), r"keys\[0\]: got 1024 bits"


def test_a_bad_set_of_keys_ends_a_start(files: dict[str, object]) -> None:
    for text, says in bad_sets():
        Path(str(files["jwks_file"])).write_text(text)
        with pytest.raises(ConfigError, match=rf"jwks_file: .*jwks\.json: {says}"):
            access_of(files)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=9), lambda x: st.lists(x, max_size=3), max_leaves=9))
def test_no_set_of_keys_fails_otherwise(value: object) -> None:
    for text in (json.dumps(value), jwks(public_key("ES256") | {"x": value}), jwks({"kty": value, "crv": value})):
        try:
            parse_keys(text.encode())
        except ConfigError:
            continue


@given(st.binary(max_size=60), st.binary(max_size=60), st.sampled_from(["RS256", "ES256", "none", "HS256", "x"]))
def test_no_token_fails_otherwise(head: bytes, body: bytes, algorithm: str) -> None:
    keys = parse_keys(jwks(public_key("ES256")).encode())
    verifier = JwtVerifier(JwtOptions(ISSUER, AUDIENCE, "scope", {}, 0))
    for made in (raw({"alg": algorithm, "kid": "ES256"}, body), f"{head.hex()}.{body.hex()}.x"):
        with pytest.raises(Unauthenticated):
            verifier.caller(made, keys, {}, time.time())


def test_settings_go_together(files: dict[str, object]) -> None:
    for lacking in ("jwt_issuer", "jwt_audience"):
        with pytest.raises(ValueError, match=f"{lacking}: got nothing, must be given with jwks_file"):
            AccessSettings.model_validate({name: value for name, value in files.items() if name != lacking})
    for bad in ("rank", "=rank", "x=fly"):
        with pytest.raises(ValueError, match=r"jwt_rights: got .*, must be VALUE=RIGHT with one of rank, append"):
            AccessSettings(jwt_rights=bad)
    with pytest.raises(ValueError, match="jwt_issuer: got a name, must be given only with jwks_file"):
        AccessSettings(jwt_issuer="x")
