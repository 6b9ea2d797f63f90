"""A page of elsewhere cannot have a browser on this machine read or change what is the server's."""

from pathlib import Path

import pytest

from server.http.browsers import is_of_here
from tests.server.access.credentials import CALLS, bearer, one_of_each, token
from tests.server.harness import Running, serving

RANK, DELETE = CALLS["rank"], CALLS["delete"]


async def code(running: Running, verb: str, path: str, **headers: str) -> int:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = RANK.body if path == RANK.path else None
    return (await running.http.request(verb, path, json=body, headers=named)).status_code


async def get_as(running: Running, host: str) -> int:
    """The status of the metrics on their own port."""
    return (await running.http.get(f"http://{running.addresses.metrics}/metrics", headers={"host": host})).status_code


@pytest.mark.parametrize("frontends", [0, 1])
async def test_a_name_that_dns_may_point_here_is_refused(frontends: int) -> None:
    async with serving(frontends=frontends, metrics_port=0) as running:
        for host in (
            "evil.example",
            "evil.example:8080",
            "EVIL.EXAMPLE.",
            "127.0.0.1.evil.example",
            "localhost.evil.com",
        ):
            for verb, path in (
                ("GET", "/v1/users/ann/history"),
                (DELETE.verb, DELETE.path),
                ("GET", "/"),
                ("GET", "/livez"),
            ):
                assert await code(running, verb, path, host=host) == 403, (host, path)
            assert await get_as(running, host) == 403
        for host in ("127.0.0.1", "localhost:1", "console.localhost", "[::1]:8080", "10.1.2.3:80", "mfalcon:8080"):
            assert await code(running, "POST", RANK.path, host=host) == 200, host
            assert await get_as(running, host) == 200


async def test_any_name_will_do_where_callers_are_known_or_it_was_said_so(tmp_path: Path) -> None:
    async with serving(insecure=True) as running:
        assert await code(running, "GET", "/v1/models", host="ranking.example") == 200
    async with serving(tokens_file=one_of_each(tmp_path / "callers.toml")) as running:
        known = bearer(token("rank"))
        assert await code(running, "GET", "/v1/models", host="ranking.example", authorization=known) == 200
        assert await code(running, "GET", "/v1/models", host="ranking.example") == 401


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_page_of_elsewhere_changes_nothing(site: str) -> None:
    async with serving() as running:
        assert await code(running, "POST", "/v1/users/ann/prefill", sec_fetch_site=site) == 403
        assert await code(running, DELETE.verb, DELETE.path, sec_fetch_site=site) == 403
        assert await code(running, "GET", "/", sec_fetch_site=site) == 200  # a link to the console
        for own in ("same-origin", "none"):
            assert await code(running, "POST", RANK.path, sec_fetch_site=own) == 200


OURS = ("", ":1", "[::1]", "[::ffff:7f00:1]:1", "[fe80::1", "[x]", "::1", "a", "ours.example:1", "OURS.example.")


def test_hosts() -> None:
    assert all(is_of_here(authority, "Ours.example") for authority in OURS)
    for authority in (
        "a.b",
        "1.2.3",
        "x@127.0.0.1.a",
        "127.0.0.1.a:80",
        "[a.b]",
        "a.localhost.b",
        "ours.example.b",
        "a..",
    ):
        assert not is_of_here(authority, "Ours.example"), authority
