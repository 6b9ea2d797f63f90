"""A client's certificate proves who calls, over both transports, unless a token says who it is."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest
from cryptography import x509

from proto import ranking_pb2_grpc
from server.config import load_config
from server.service import Service
from tests.certificates import LOCAL, Signed, signed
from tests.server.access.credentials import CALLS, bearer, by_grpc, by_http, table, token, written
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS, Clients

URI = x509.UniformResourceIdentifier("spiffe://shop/web")
CERTIFICATES: dict[str, tuple[str, Sequence[x509.GeneralName], str]] = {
    # what is shown: common name, alternative names, how a rank ends
    "a URI of the file": ("anything", [URI], "OK"),
    "a DNS name of the file": ("anything", [x509.DNSName("app.shop")], "OK"),
    "a common name of the file": ("batch", [], "OK"),
    "another URI": ("anything", [x509.UniformResourceIdentifier("spiffe://shop/web/x")], "UNAUTHENTICATED"),
    "a common name that reads like a URI of the file": ("uri:spiffe://shop/web", [], "UNAUTHENTICATED"),
    "a DNS name where the file has a common name": ("x", [x509.DNSName("batch")], "UNAUTHENTICATED"),
    "a caller without the right": ("reader", [], "PERMISSION_DENIED"),
}


class Server:
    """A server that asks for certificates of an authority."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.authority = signed("authority")
        cert, key = signed("server", self.authority, LOCAL).write(directory, "server")
        self.ca = directory / "ca.pem"
        self.ca.write_bytes(self.authority.cert_pem)
        callers = (
            table("web", ["rank"], [(token("web"), None)], ['uri = "spiffe://shop/web"']),
            table("app", ["rank"], (), ['dns = "app.shop"']),
            table("batch", ["rank"], (), ['cn = "batch"']),
            table("reader", ["read"], [(token("reader"), None)], ['cn = "reader"']),
        )
        given = {"tls_cert_file": cert, "tls_key_file": key, "tls_client_ca_file": self.ca, "drain_seconds": 1}
        given |= {"tokens_file": written(directory / "callers.toml", *callers)}
        self.service = Service(load_config(None, FREE_PORTS | given | settings))

    async def __aenter__(self) -> "Server":
        self.addresses = await self.service.listen()
        await self.service.serve(FakeEngine())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.stop()

    @asynccontextmanager
    async def client(self, certificate: Signed) -> AsyncIterator[Clients]:
        """Both transports with a certificate."""
        cert, key = certificate.write(self.directory, "client")
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(cert, key)
        credentials = grpc.ssl_channel_credentials(self.authority.cert_pem, key.read_bytes(), cert.read_bytes())
        async with (
            grpc.aio.secure_channel(
                self.addresses.grpc, credentials, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel,
            httpx.AsyncClient(base_url=f"https://{self.addresses.http}", verify=context, timeout=60) as http,
        ):
            yield Clients(channel, ranking_pb2_grpc.RankingStub(channel), http)


@pytest.mark.parametrize("frontends", [0, 1])
async def test_a_certificate_is_a_caller_by_its_names(tmp_path: Path, frontends: int) -> None:
    async with Server(tmp_path, frontends=frontends) as server:
        for shown, (name, alternatives, code) in CERTIFICATES.items():
            async with server.client(signed(name, server.authority, alternatives)) as clients:
                told = {way.__name__: (await way(clients, CALLS["rank"]))[0] for way in (by_grpc, by_http)}
                assert told == {"by_grpc": code, "by_http": code}, shown


async def test_a_token_beside_a_certificate_decides(tmp_path: Path) -> None:
    async with Server(tmp_path) as server, server.client(signed("x", server.authority, [URI])) as clients:
        for way in (by_grpc, by_http):
            assert (await way(clients, CALLS["rank"], bearer(token("reader"))))[0] == "PERMISSION_DENIED"
            assert (await way(clients, CALLS["history"], bearer(token("reader"))))[0] == "OK"
            assert (await way(clients, CALLS["rank"], bearer("wrong")))[0] == "UNAUTHENTICATED"
            assert (await way(clients, CALLS["rank"]))[0] == "OK"


async def test_nobody_is_a_caller_by_a_certificate_of_another_authority(tmp_path: Path) -> None:
    async with Server(tmp_path) as server, server.client(signed("x", signed("authority"), [URI])) as clients:
        assert (await by_grpc(clients, CALLS["rank"]))[0] == "UNAVAILABLE"
        with pytest.raises(httpx.TransportError):
            await by_http(clients, CALLS["rank"])
