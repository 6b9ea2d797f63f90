"""Every credential over both transports: who has the right one gets in, and nobody else, whatever the call."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from proto import ranking_pb2
from server.access.caller import RIGHT_OF
from server.grpc.counted import verb_of
from tests.server.access.credentials import (
    CALLS,
    RIGHTS,
    access_of,
    answer_of,
    bearer,
    by_grpc,
    by_http,
    in_days,
    one_of_each,
    table,
    token,
    written,
)
from tests.server.harness import Running, health_of, serving

RANK = CALLS["rank"]
SEVERAL = "authorization: got 2, must be one"
INVALID = "authorization: the token is not valid"
NONE = "authorization: got none, must be 'Bearer TOKEN'"
NOT_ONE = "authorization: must be 'Bearer ' and 1 to 8192 printable characters without a space"


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Running]:
    """A server with a caller for each right."""
    async with serving(tokens_file=one_of_each(tmp_path / "callers.toml")) as running:
        yield running


CREDENTIALS: dict[str, tuple[tuple[str, ...], tuple[str, str]]] = {
    "right": ((bearer(token("rank")),), ("OK", "")),
    "right, in small letters": ((f"bearer {token('rank')}",), ("OK", "")),
    "all rights": ((bearer(token("admin")),), ("OK", "")),
    "missing": ((), ("UNAUTHENTICATED", NONE)),
    "wrong": ((bearer(token("nobody")),), ("UNAUTHENTICATED", INVALID)),
    "one letter short": ((bearer(token("rank")[:-1]),), ("UNAUTHENTICATED", INVALID)),
    "other case": ((bearer(token("rank").upper()),), ("UNAUTHENTICATED", INVALID)),
    "the hash itself": ((bearer("0" * 64),), ("UNAUTHENTICATED", INVALID)),
    "another scheme": (("Basic YW5uOmFubg==",), ("UNAUTHENTICATED", "authorization: got another scheme, must be")),
    "no scheme": ((token("rank"),), ("UNAUTHENTICATED", "authorization: got another scheme, must be")),
    "an empty one": (("Bearer",), ("UNAUTHENTICATED", NOT_ONE)),
    "two words": ((bearer(f"{token('rank')} x"),), ("UNAUTHENTICATED", NOT_ONE)),
    "7,000 letters": ((bearer("x" * 7_000),), ("UNAUTHENTICATED", INVALID)),
    "given twice": ((bearer(token("rank")), bearer(token("rank"))), ("UNAUTHENTICATED", SEVERAL)),
    "right and wrong": ((bearer(token("rank")), bearer(token("nobody"))), ("UNAUTHENTICATED", SEVERAL)),
    "another right": ((bearer(token("append")),), ("PERMISSION_DENIED", "caller append: has the rights append, must")),
}


async def test_a_credential_is_answered_the_same_by_both(guarded: Running) -> None:
    for shown, (headers, (code, says)) in CREDENTIALS.items():
        guarded.engine.requests.clear()
        for told in (await by_grpc(guarded, RANK, *headers), await by_http(guarded, RANK, *headers)):
            assert told[0] == code and told[1].startswith(says), (shown, told)
            assert token("rank") not in told[1] and "nobody" not in told[1]
        assert len(guarded.engine.requests) == 2 * (code == "OK"), shown


async def test_a_token_that_has_expired_was_good_until_then(tmp_path: Path) -> None:
    web = table("web", ["rank"], [("old", in_days(-1)), ("new", in_days(1)), ("ever", None)])
    async with serving(tokens_file=written(tmp_path / "callers.toml", web)) as running:
        for told in (await by_grpc(running, RANK, bearer("old")), await by_http(running, RANK, bearer("old"))):
            assert told[0] == "UNAUTHENTICATED"
            assert told[1].startswith("authorization: the token of caller web has expired at 20")
        for good in ("new", "ever"):
            assert (
                await by_grpc(running, RANK, bearer(good)) == await by_http(running, RANK, bearer(good)) == ("OK", "")
            )


def test_every_method_is_asked_with_every_right() -> None:
    methods = {method.name for method in ranking_pb2.DESCRIPTOR.services_by_name["Ranking"].methods}
    assert {call.method for call in CALLS.values()} == methods
    assert {verb_of(call.method): call.right for call in CALLS.values()}.items() <= RIGHT_OF.items()


async def test_each_right_opens_its_methods_alone(guarded: Running) -> None:
    for holder in RIGHTS:
        known = bearer(token(holder))
        for call in CALLS.values():
            code = call.code if holder in (call.right, "admin") else "PERMISSION_DENIED"
            assert (await by_grpc(guarded, call, known))[0] == code, (holder, call.method)
            assert (await by_http(guarded, call, known))[0] == code, (holder, call.path)
        metrics = await guarded.http.get("/metrics", headers={"authorization": known})
        assert metrics.status_code == (200 if holder in ("metrics", "admin") else 403)


async def test_nothing_but_the_probes_answers_strangers(guarded: Running) -> None:
    for path in ("/livez", "/readyz"):
        assert (await guarded.http.get(path)).status_code == 200
    assert await health_of(guarded.channel) == health_pb2.HealthCheckResponse.SERVING
    for path in ("/", "/docs", "/console/main.js"):  # files that are the same in every installation
        assert (await guarded.http.get(path)).status_code == 200
        assert (await guarded.http.post(path)).status_code == 401
    paths = {"/openapi.json", "/metrics", "/nowhere", "/livez/", "/readyz//", "/v1/users/a/livez"}
    paths |= {"/console/api/info", "/console/api/live", "/console/api/items", "/console/nowhere", "/console/"}
    for path in paths:
        for verb in ("GET", "HEAD", "POST", "OPTIONS", "DELETE"):
            answer = await guarded.http.request(verb, path)
            assert answer.status_code == 401, (verb, path)
            assert answer.headers["www-authenticate"] == "Bearer"
    answer = await guarded.http.get("/openapi.json", headers={"authorization": bearer(token("rank"))})
    assert answer.status_code == 200
    answer = await answer_of(guarded, RANK, bearer("wrong"))
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'


async def test_reflection_is_for_callers(guarded: Running) -> None:
    ask: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = guarded.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    question = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError, match="UNAUTHENTICATED"):
        await ask(iter([question])).read()
    told = await ask(iter([question]), metadata=(("authorization", bearer(token("read"))),)).read()
    assert isinstance(told, bytes) and b"mfalcon.v1.Ranking" in told


async def test_who_is_refused_has_nothing_read(guarded: Running) -> None:
    """Neither what is no message nor a large one is looked at; a write says that nothing was written."""
    for body in (b"\xff", bytes(2**21)):
        assert (await by_grpc(guarded, RANK, body=body))[0] == "UNAUTHENTICATED"
        assert (await by_grpc(guarded, RANK, bearer(token("read")), body=body))[0] == "PERMISSION_DENIED"
        for known in ({}, {"authorization": bearer(token("read"))}):
            answer = await guarded.http.post("/v1/rank", content=body, headers=known)
            assert answer.status_code == (403 if known else 401)
    for headers in ((), (bearer(token("rank")),)):
        answer = await answer_of(guarded, CALLS["append"], *headers)
        assert answer.json()["error"]["outcome"] == "nothing-written"
    assert await by_http(guarded, RANK, bearer(token("rank"))) == ("OK", "")


async def test_a_rotation_refuses_nobody(tmp_path: Path) -> None:
    """Old alone, both, new alone: at each moment the token that callers have is good."""
    path = tmp_path / "callers.toml"
    access = access_of(written(path, table("web", ["rank"], [("old", None)])))
    assert access.caller("Bearer old").name == "web"
    for tokens, good, bad in ((("old", "new"), ("old", "new"), ()), (("new",), ("new",), ("old",))):
        written(path, table("web", ["rank"], [(each, None) for each in tokens]))
        access.look()
        for each in good:
            assert access.caller(bearer(each)).name == "web"
        for each in bad:
            with pytest.raises(Exception, match="not valid"):
                access.caller(bearer(each))


@pytest.mark.parametrize("frontends", [0, 1])
async def test_a_changed_file_is_read_by_every_process(tmp_path: Path, frontends: int) -> None:
    path = written(tmp_path / "callers.toml", table("web", ["rank"], [("old", None)]))
    async with serving(tokens_file=path, frontends=frontends) as running:
        assert await by_grpc(running, RANK, bearer("old")) == ("OK", "")
        assert await by_http(running, RANK) == ("UNAUTHENTICATED", NONE)
        path.write_text("[[callers]\n")  # half a file: the old one stays
        running.service.hang_up()
        assert await by_http(running, RANK, bearer("old")) == ("OK", "")
        written(path, table("web", ["rank"], [("new", None)]))
        async with asyncio.timeout(60):
            while await by_http(running, RANK, bearer("new")) != ("OK", ""):  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.05)
        for told in (await by_grpc(running, RANK, bearer("old")), await by_http(running, RANK, bearer("old"))):
            assert told == ("UNAUTHENTICATED", INVALID)


async def test_a_file_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    path = written(tmp_path / "callers.toml", table("web", ["rank"], [("t", None)]))
    async with serving(tokens_file=path) as running:
        path.unlink()
        os.mkfifo(path)  # whoever opens it waits for a writer
        for _ in range(3):
            running.service.hang_up()
        await asyncio.sleep(0.05)
        assert await by_http(running, RANK, bearer("t")) == ("OK", "")
    os.close(os.open(path, os.O_RDWR))


async def test_openapi_names_what_proves_a_caller_and_the_right_that_a_path_needs(guarded: Running) -> None:
    answer = await guarded.http.get("/openapi.json", headers={"authorization": bearer(token("rank"))})
    schema = answer.json()
    assert {name: each["type"] for name, each in schema["components"]["securitySchemes"].items()} == {
        "bearer": "http",
        "certificate": "mutualTLS",
    }
    paths = schema["paths"]
    for path, method, right in (
        ("/v1/rank", "post", "rank"),
        ("/v1/users/{user_id}/events", "post", "append"),
        ("/v1/users/{user_id}/history", "get", "read"),
        ("/v1/users/{user_id}", "delete", "delete"),
        ("/metrics", "get", "metrics"),
    ):
        assert paths[path][method]["security"] == [{"bearer": [right]}, {"certificate": [right]}], path
    operations = {path: operation for path, each in paths.items() for operation in each.values()}
    assert all("security" in operation for operation in operations.values())
    assert {path for path, operation in operations.items() if not operation["security"]} >= {"/livez", "/readyz"}
    assert operations["/v1/model"]["security"]


async def test_an_open_server_describes_no_security() -> None:
    async with serving() as running:
        schema = (await running.http.get("/openapi.json")).json()
    assert "securitySchemes" not in schema["components"]
