"""The metrics on a port of their own: there alone, with the probes, from the first second to the last."""

import asyncio
import ssl
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from mfalcon.errors import ConfigError
from server.addresses import listen
from server.config import load_config
from server.service import Service
from tests.certificates import LOCAL, signed
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS, serving

WAIT_S = 60.0
RANK_JSON = {"user_id": "ann", "candidates": [1, 2]}


async def get(url: str, verify: ssl.SSLContext | bool = True) -> httpx.Response:
    async with httpx.AsyncClient(timeout=WAIT_S, verify=verify) as http:
        return await http.get(url)


async def test_metrics_are_on_the_port_of_http_unless_they_have_one() -> None:
    async with serving() as running:
        assert running.addresses.metrics == ""
        assert b"mfalcon_requests_total" in (await running.http.get("/metrics")).content


@pytest.mark.parametrize("frontends", [0, 1])
async def test_metrics_that_have_a_port_are_there_alone(frontends: int) -> None:
    async with serving(metrics_port=0, frontends=frontends) as running:
        own = f"http://{running.addresses.metrics}"
        assert (await running.http.post("/v1/rank", json=RANK_JSON)).status_code == 200
        assert (await running.http.get("/metrics")).status_code == 404
        assert "/metrics" not in (await running.http.get("/openapi.json")).json()["paths"]
        counted = 'mfalcon_requests_total{code="200",model="fake",transport="http",verb="rank"} 1.0'
        async with asyncio.timeout(WAIT_S):
            while counted not in (await get(f"{own}/metrics")).text:  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.02)
        for path in ("/livez", "/readyz"):
            assert (await get(own + path)).json() == (await running.http.get(path)).json()
        for path in ("/v1/models", "/docs", "/openapi.json", "/"):
            assert (await get(own + path)).status_code == 404


@pytest.mark.parametrize("frontends", [0, 1])
async def test_the_probes_there_tell_the_life_of_the_server(frontends: int) -> None:
    config = load_config(
        None, FREE_PORTS | {"metrics_port": 0, "frontends": frontends, "drain_linger_s": 3, "drain_seconds": 1}
    )
    service = Service(config)
    own = f"http://{(await service.listen()).metrics}"
    loading = await get(f"{own}/readyz")
    assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
    assert (await get(f"{own}/livez")).status_code == 200
    await service.serve(FakeEngine())
    ready = await get(f"{own}/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    stopping = asyncio.create_task(service.stop())
    async with asyncio.timeout(WAIT_S):
        while (left := await get(f"{own}/readyz")).status_code == 200:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.01)
    assert left.json() == {"status": "draining"}
    assert b"mfalcon_requests_total" in (await get(f"{own}/metrics")).content
    await stopping
    with pytest.raises(httpx.ConnectError):
        await get(f"{own}/livez")


async def test_a_client_without_a_certificate_has_the_probes_and_no_metrics(tmp_path: Path) -> None:
    authority = signed("authority")
    cert, key = signed("server", authority, LOCAL).write(tmp_path, "server")
    ca = tmp_path / "clients.pem"
    ca.write_bytes(authority.cert_pem)
    unknown = ssl.create_default_context(cadata=authority.cert_pem.decode())
    known = ssl.create_default_context(cadata=authority.cert_pem.decode())
    known.load_cert_chain(*signed("prometheus", authority).write(tmp_path, "prometheus"))
    settings = {"tls_cert_file": cert, "tls_key_file": key, "metrics_port": 0}
    service = Service(load_config(None, FREE_PORTS | settings | {"tls_client_ca_file": ca}))
    own = f"https://{(await service.listen()).metrics}"
    try:
        assert (await get(f"{own}/livez", unknown)).status_code == 200
        refused = await get(f"{own}/metrics", unknown)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "UNAUTHENTICATED")
        assert (await get(f"{own}/metrics", known)).status_code == 200
    finally:
        await service.stop()
    service = Service(load_config(None, FREE_PORTS | settings))
    own = f"https://{(await service.listen()).metrics}"
    try:
        assert (await get(f"{own}/metrics", unknown)).status_code == 200
    finally:
        await service.stop()


async def test_who_must_say_who_they_are_must_say_it_there_too(tmp_path: Path) -> None:
    scraper, web = "mfk_" + "s" * 43, "mfk_" + "w" * 43
    callers = tmp_path / "callers.toml"
    callers.write_text(
        "".join(
            f'[[callers]]\nname = "{right}"\nrights = ["{right}"]\n[[callers.tokens]]\n'
            f'sha256 = "{sha256(token.encode()).hexdigest()}"\n'
            for right, token in (("metrics", scraper), ("rank", web))
        )
    )
    service = Service(load_config(None, FREE_PORTS | {"metrics_port": 0, "tokens_file": callers}))
    own = f"http://{(await service.listen()).metrics}"
    try:
        async with httpx.AsyncClient(base_url=own, timeout=WAIT_S) as http:
            found = {
                token: (await http.get("/metrics", headers={"authorization": f"Bearer {token}"})).status_code
                for token in (scraper, web, "another")
            }
            assert found == {scraper: 200, web: 403, "another": 401}
            assert (await http.get("/metrics")).status_code == 401
            assert (await http.get("/livez")).status_code == 200
    finally:
        await service.stop()


async def test_a_port_that_is_taken_is_told_and_nothing_is_left_open() -> None:
    with listen("metrics", "127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        service = Service(load_config(None, FREE_PORTS | {"metrics_port": port, "drain_seconds": 0}))
        with pytest.raises(ConfigError, match=f"metrics_host, metrics_port: cannot listen on 127.0.0.1:{port}"):
            await service.listen()
        assert not service.running
