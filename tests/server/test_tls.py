"""TLS on both transports: who is let in, what is spoken, and a certificate that is exchanged while requests run."""

import asyncio
import logging
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import grpc
import grpc.aio
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from mfalcon.errors import ConfigError
from mfalcon.metrics.certificates import CertificateMetrics
from mfalcon.metrics.requests import RequestMetrics
from mfalcon.metrics.stages import StageMetrics
from proto import ranking_pb2, ranking_pb2_grpc
from server.access.access import Access
from server.addresses import Addresses, listen
from server.arrivals import Arrivals
from server.config import ServerConfig, load_config
from server.grpc.admin import AdminServer
from server.grpc.ports import bind
from server.http.connection import ConnectionLimits
from server.http.counted import CountedApp
from server.http.server import HttpServer
from server.peer_names import CLIENT_NAMES, Names, names_over_grpc
from server.reload import Reloaded
from server.service import Service
from server.settings.access import AccessSettings
from server.tls import Certificates
from tests.certificates import DAY, LOCAL, Signed, signed
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS

WAIT_S = 60.0
RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1, 2])
RANK_JSON = {"user_id": "ann", "candidates": [1, 2]}
TRANSPORTS = ("grpc", "http")
REFUSED = "refused"
ID = x509.UniformResourceIdentifier("spiffe://shop/ranker")


class Files:
    """An authority, a server's certificate in files, and the settings that name them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = signed("authority")
        self.server = signed("server", self.authority, LOCAL)
        cert, key = self.server.write(directory, "server")
        self.settings: dict[str, object] = {"tls_cert_file": cert, "tls_key_file": key}

    def mutual(self, **settings: object) -> dict[str, object]:
        """The same with clients' certificates."""
        path = self.directory / "clients.pem"
        path.write_bytes(self.authority.cert_pem)
        return self.settings | {"tls_client_ca_file": path} | settings


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def settings_of(files: Files, **settings: object) -> ServerConfig:
    return load_config(None, FREE_PORTS | files.settings | settings)


@asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[tuple[Service, Addresses]]:
    service = Service(load_config(None, FREE_PORTS | {"drain_seconds": 1} | settings))
    addresses = await service.listen()
    try:
        await service.serve(FakeEngine())
        yield service, addresses
    finally:
        await service.stop()


def context_of(trusted: Signed, client: Signed | None, directory: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=trusted.cert_pem.decode())
    if client is not None:
        cert, key = client.write(directory, f"client-{client.certificate.serial_number}")
        context.load_cert_chain(cert, key)
    return context


def channel_to(address: str, trusted: Signed, client: Signed | None = None) -> grpc.aio.Channel:
    key, chain = (client.key_pem, client.cert_pem) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(trusted.cert_pem, key, chain)
    return grpc.aio.secure_channel(address, credentials, options=[("grpc.use_local_subchannel_pool", 1)])


async def ask(transport: str, addresses: Addresses, trusted: Signed, client: Signed | None, directory: Path) -> str:
    """How one rank over a new connection ends: "answered", or "refused" where there was no connection."""
    if transport == "http":
        try:
            async with httpx.AsyncClient(verify=context_of(trusted, client, directory), timeout=WAIT_S) as http:
                answer = await http.post(f"https://{addresses.http}/v1/rank", json=RANK_JSON)
        except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
            return REFUSED
        assert answer.status_code == 200 and len(answer.json()["scores"]) == 2
        return "answered"
    async with channel_to(addresses.grpc, trusted, client) as channel:
        try:
            answered = await ranking_pb2_grpc.RankingStub(channel).Rank(RANK, timeout=WAIT_S)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return REFUSED
    assert len(answered.scores) == 2
    return "answered"


async def test_who_trusts_the_authority_is_answered_and_nobody_else_connects(files: Files) -> None:
    async with serving(**files.settings) as (_, addresses):
        for transport in TRANSPORTS:
            assert await ask(transport, addresses, files.authority, None, files.directory) == "answered"
            assert await ask(transport, addresses, signed("authority"), None, files.directory) == REFUSED


async def test_nothing_is_said_in_clear_where_there_is_a_certificate(files: Files) -> None:
    async with serving(**files.settings) as (_, addresses):
        async with httpx.AsyncClient(timeout=WAIT_S) as http:
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await http.get(f"http://{addresses.http}/livez")
        async with grpc.aio.insecure_channel(addresses.grpc) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ranking_pb2_grpc.RankingStub(channel).Rank(RANK, timeout=WAIT_S)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_required_certificate_of_a_client_must_be_right(files: Files) -> None:
    clients = {
        "right": (signed("shop", files.authority, [ID]), "answered"),
        "missing": (None, REFUSED),
        "of another authority": (signed("shop", signed("authority"), [ID]), REFUSED),
        "expired": (signed("shop", files.authority, [ID], begins=-2 * DAY, ends=-DAY), REFUSED),
        "not yet": (signed("shop", files.authority, [ID], begins=DAY), REFUSED),
        "signed by itself": (signed("shop", None, [ID]), REFUSED),
    }
    async with serving(**files.mutual()) as (_, addresses):
        for transport in TRANSPORTS:
            found = {
                name: await ask(transport, addresses, files.authority, client, files.directory)
                for name, (client, _) in clients.items()
            }
            assert found == {name: ends for name, (_, ends) in clients.items()}, transport


async def test_an_optional_certificate_may_be_missing_and_must_be_right_over_http(files: Files) -> None:
    wrong = signed("shop", signed("authority"), [ID])
    async with serving(**files.mutual(tls_client_certs="optional")) as (_, addresses):
        for transport in TRANSPORTS:
            assert await ask(transport, addresses, files.authority, None, files.directory) == "answered"
        assert await ask("http", addresses, files.authority, wrong, files.directory) == REFUSED


async def test_a_client_is_known_by_the_same_names_on_both_transports(files: Files) -> None:
    client = signed("shop", files.authority, [x509.DNSName("shop.internal"), ID])
    certificates = Certificates(settings_of(files, **files.mutual()))
    found: dict[str, Names] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found["http"] = scope["extensions"]["tls"][CLIENT_NAMES]
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def method(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        found["grpc"] = names_over_grpc(context.auth_context())
        return b""

    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(method)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Who", {"Am": handler}),))
    port = bind(server, "grpc", "127.0.0.1", 0, certificates)
    await server.start()
    async with channel_to(f"127.0.0.1:{port}", files.authority, client) as channel:
        ask_who: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/Who/Am")
        await ask_who(b"", timeout=WAIT_S)
    await server.stop(None)
    registry = CollectorRegistry()
    arrivals = Arrivals("http", RequestMetrics(registry), StageMetrics(registry))
    limits = ConnectionLimits(10, 10, 10)
    http_server = HttpServer(CountedApp(app, arrivals), limits, lambda: certificates.context, 1)
    listening = listen("http", "127.0.0.1", 0)
    task = asyncio.create_task(http_server.serve(sockets=[listening]))
    await http_server.listening.wait()
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    async with httpx.AsyncClient(verify=context_of(files.authority, client, files.directory), timeout=60) as http:
        assert (await http.get(f"https://{address}/")).status_code == 204
    http_server.should_exit = True
    await task
    assert found["http"] == found["grpc"]
    assert found["grpc"] == (("uri", "spiffe://shop/ranker"), ("dns", "shop.internal"), ("cn", "shop"))


@pytest.mark.parametrize("frontends", [0, 1])
async def test_a_certificate_is_exchanged_while_requests_run_and_none_of_them_fails(
    files: Files, frontends: int
) -> None:
    other = Files(_beneath(files.directory, "other"))
    both = files.authority.cert_pem + other.authority.cert_pem
    trusted = ssl.create_default_context(cadata=both.decode())
    ends: list[object] = []
    stopping = asyncio.Event()

    async def over_grpc(addresses: Addresses, *, anew: bool) -> None:
        credentials = grpc.ssl_channel_credentials(both)
        options = [("grpc.use_local_subchannel_pool", 1)]
        while not stopping.is_set():
            async with grpc.aio.secure_channel(addresses.grpc, credentials, options=options) as channel:
                while not stopping.is_set():
                    ends.append(len((await ranking_pb2_grpc.RankingStub(channel).Rank(RANK, timeout=WAIT_S)).scores))
                    if anew:
                        break

    async def over_http(addresses: Addresses, *, anew: bool) -> None:
        while not stopping.is_set():
            async with httpx.AsyncClient(verify=trusted, timeout=WAIT_S) as http:
                while not stopping.is_set():
                    answer = await http.post(f"https://{addresses.http}/v1/rank", json=RANK_JSON)
                    ends.append(len(answer.json()["scores"]))
                    if anew:
                        break

    async with serving(**files.settings, frontends=frontends) as (service, addresses):
        callers = [
            asyncio.create_task(f(addresses, anew=anew)) for f in (over_grpc, over_http) for anew in (True, False)
        ]
        for now in (other,) if frontends else (other, files, other):  # a front-end looks every two seconds
            now.server.write(files.directory, "server")
            service.hang_up()
            for transport in TRANSPORTS:  # until whoever trusts the new authority alone is answered
                async with asyncio.timeout(WAIT_S):
                    while await ask(transport, addresses, now.authority, None, files.directory) == REFUSED:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
        num_ends = len(ends)
        async with asyncio.timeout(WAIT_S):
            while len(ends) < num_ends + 20:  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.01)
        stopping.set()
        await asyncio.gather(*callers)  # raises what a request has failed with
        assert set(ends) == {2}
        for transport in TRANSPORTS:
            assert await ask(transport, addresses, files.authority, None, files.directory) == REFUSED


def _beneath(directory: Path, name: str) -> Path:
    made = directory / name
    made.mkdir()
    return made


def spoilt(files: Files) -> dict[str, tuple[Callable[[Path, Path], object], str]]:
    """How the files may be bad, and what is said of them."""
    weak = rsa.generate_private_key(65_537, 1_024)
    encrypted = files.server.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )

    def of_key(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Signed:
        return signed("server", files.authority, LOCAL, key=key)

    def write(made: Signed) -> Callable[[Path, Path], object]:
        return lambda cert, key: (cert.write_bytes(made.cert_pem), key.write_bytes(made.key_pem))

    return {
        "another key": (
            lambda cert, key: key.write_bytes(signed("x").key_pem),
            "got another key than that of the first certificate of tls_cert_file",
        ),
        "half a certificate": (lambda cert, key: cert.write_bytes(files.server.cert_pem[:300]), "or half of one"),
        "half a key": (lambda cert, key: key.write_bytes(files.server.key_pem[:100]), "or half of one"),
        "half of the second": (
            lambda cert, key: cert.write_bytes(files.server.cert_pem + files.authority.cert_pem[:200]),
            "or half of one",
        ),
        "emptied": (lambda cert, key: cert.write_bytes(b""), "got no byte"),
        "huge": (lambda cert, key: cert.write_bytes(b"x" * 2**21), "got more than 1048576 bytes"),
        "deleted": (lambda cert, key: key.unlink(), "No such file or directory"),
        "a directory": (lambda cert, key: (cert.unlink(), cert.mkdir()), "Is a directory"),
        "a passphrase": (lambda cert, key: key.write_bytes(encrypted), "got a key with a passphrase"),
        "expired": (
            write(signed("server", files.authority, LOCAL, begins=-2 * DAY, ends=-DAY)),
            "the certificate has expired on",
        ),
        "not yet": (
            write(signed("server", files.authority, LOCAL, begins=DAY, ends=2 * DAY)),
            "the certificate is not valid before",
        ),
        "weak": (write(of_key(weak)), "got RSA of 1024 bits, must be at least 2048"),
        "Ed25519": (write(of_key(ed25519.Ed25519PrivateKey.generate())), "got Ed25519PrivateKey, must be RSA or ECDSA"),
        "P-521": (write(of_key(ec.generate_private_key(ec.SECP521R1()))), "got secp521r1, must be RSA or ECDSA"),
    }


KINDS = (
    *("another key", "half a certificate", "half a key", "half of the second", "emptied", "huge", "deleted"),
    *("a directory", "a passphrase", "expired", "not yet", "weak", "Ed25519", "P-521"),
)


@pytest.mark.parametrize("kind", KINDS)
async def test_bad_files_are_refused_and_the_certificate_of_before_is_served(
    files: Files, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    config = settings_of(files)
    certificates = Certificates(config, CertificateMetrics(registry))
    before, cases = certificates.identity, spoilt(files)
    assert cases.keys() == set(KINDS)
    spoil, says = cases[kind]
    assert config.tls_cert_file is not None and config.tls_key_file is not None
    spoil(config.tls_cert_file, config.tls_key_file)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await certificates.look()
    assert certificates.identity is before and certificates.context is before.context
    complaints = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(complaints) == 1 and says in complaints[0]
    assert "PRIVATE" not in caplog.text and repr(before.pems) == "Pems()"
    assert registry.get_sample_value("mfalcon_tls_certificate_changes_total", {"outcome": "refused"}) == 1
    with pytest.raises(ConfigError, match=says):  # nor is it started with
        Service(config)

    if config.tls_cert_file.is_dir():
        config.tls_cert_file.rmdir()
    after = signed("server", files.authority, LOCAL, ends=90 * DAY)
    after.write(files.directory, "server")
    await certificates.look()
    assert certificates.identity.pems.certificate == after.cert_pem
    assert registry.get_sample_value("mfalcon_tls_certificate_changes_total", {"outcome": "replaced"}) == 1
    until = registry.get_sample_value("mfalcon_tls_certificate_expiry_timestamp_seconds")
    assert until == after.certificate.not_valid_after_utc.timestamp()


async def test_a_directory_that_is_exchanged_by_a_symlink_is_seen(tmp_path: Path) -> None:
    """As Kubernetes keeps a Secret: tls.crt -> ..data/tls.crt, and ..data -> a directory of that version."""
    authority = signed("authority")
    made = [signed("server", authority, LOCAL) for _ in range(2)]
    for number, pair in enumerate(made):
        pair.write(_beneath(tmp_path, f"..{number}"), "tls")
    (tmp_path / "..data").symlink_to("..0")
    for name in ("tls.pem", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    config = load_config(
        None, FREE_PORTS | {"tls_cert_file": tmp_path / "tls.pem", "tls_key_file": tmp_path / "tls.key"}
    )
    certificates = Certificates(config)
    assert certificates.identity.pems.certificate == made[0].cert_pem
    (tmp_path / "..new").symlink_to("..1")
    (tmp_path / "..new").rename(tmp_path / "..data")
    watching = asyncio.create_task(certificates.watch(0.01))
    async with asyncio.timeout(WAIT_S):
        while certificates.identity.pems.certificate != made[1].cert_pem:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.01)
    watching.cancel()


async def test_a_certificate_that_nobody_replaces_is_told_in_the_log(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    now = datetime.now(UTC)
    certificates = Certificates(settings_of(files), now=lambda: now)
    until = certificates.identity.not_after
    with caplog.at_level(logging.WARNING):
        for left, says in (
            (31 * DAY, ""),
            (29 * DAY, "expires soon"),
            (DAY, ""),
            (-DAY, "has expired"),
            (-2 * DAY, ""),
        ):
            caplog.clear()
            now = until - left
            await certificates.look()
            messages = [record.getMessage() for record in caplog.records]
            assert bool(messages) == bool(says) and all(says in message for message in messages)
    short = signed("server", files.authority, LOCAL, begins=timedelta(), ends=timedelta(hours=10))
    short.write(files.directory, "server")
    identity = Certificates(settings_of(files)).identity
    hours = {left: identity.age(identity.not_after - timedelta(hours=left)) for left in (3, 1)}
    assert hours == {3: "young", 1: "old"}  # a fifth of its life, not a month


async def test_a_certificate_of_tomorrow_is_served_from_then_on(files: Files) -> None:
    now = datetime.now(UTC)
    certificates = Certificates(settings_of(files), now=lambda: now)
    coming = signed("server", files.authority, LOCAL, begins=DAY, ends=9 * DAY)
    coming.write(files.directory, "server")
    await certificates.look()
    assert certificates.identity.pems.certificate != coming.cert_pem
    now += DAY
    await certificates.look()
    assert certificates.identity.pems.certificate == coming.cert_pem


async def test_who_is_silent_in_the_handshake_has_no_place_and_no_patience(files: Files) -> None:
    async with serving(**files.settings, http_connections=16, tls_handshake_timeout_s=600) as (_, addresses):
        host, port = addresses.http.split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(40)]
        assert await ask("http", addresses, files.authority, None, files.directory) == "answered"
        ends = [asyncio.create_task(reader.read()) for reader, _ in silent]
        async with asyncio.timeout(WAIT_S):
            for end in islice(asyncio.as_completed(ends), 40 - 16):  # they had to make place
                with suppress(ConnectionResetError):
                    assert await end == b""
        for _, writer in silent:
            writer.transport.abort()
        await asyncio.gather(*ends, return_exceptions=True)
    async with serving(**files.settings, tls_handshake_timeout_s=0.2) as (_, addresses):
        for address in (addresses.http, addresses.grpc):
            host, port = address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            with suppress(ConnectionResetError):
                async with asyncio.timeout(WAIT_S):
                    assert await reader.read() == b""
            writer.transport.abort()


@pytest.mark.parametrize(
    ("lowest", "highest", "ciphers", "shakes"),
    [
        (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, "AES128-SHA:AES128-GCM-SHA256:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM", True),
        (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3, "DEFAULT", True),
    ],
)
async def test_only_good_ciphers_of_tls_1_2_and_1_3_are_spoken(
    files: Files, lowest: ssl.TLSVersion, highest: ssl.TLSVersion, ciphers: str, shakes: bool
) -> None:
    context = ssl.create_default_context(cadata=files.authority.cert_pem.decode())
    with pytest.warns(DeprecationWarning) if lowest < ssl.TLSVersion.TLSv1_2 else nullcontext():
        context.minimum_version = lowest
        context.maximum_version = highest
    context.set_ciphers(ciphers)
    context.set_alpn_protocols(["h2", "http/1.1"])
    spoken: dict[str, str | None] = {}
    async with serving(**files.settings) as (_, addresses):
        for transport, address in (("grpc", addresses.grpc), ("http", addresses.http)):
            host, port = address.split(":")
            try:
                _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
            except (ssl.SSLError, ConnectionResetError):
                spoken[transport] = None
                continue
            spoken[transport] = writer.get_extra_info("ssl_object").selected_alpn_protocol()
            writer.transport.abort()
    assert spoken == ({"grpc": "h2", "http": "http/1.1"} if shakes else {"grpc": None, "http": None})


async def test_over_http_keys_are_exchanged_by_one_cheap_curve_alone(files: Files) -> None:
    """OpenSSL's own choice has finite fields of up to 8,192 bits in it: 0.1 s of the event loop for a handshake of
    whoever may connect, with no proof of anything.
    """
    async with serving(**files.settings) as (_, addresses):
        for curve, shakes in (("secp521r1", False), ("prime256v1", True)):
            context = context_of(files.authority, None, files.directory)
            context.set_ecdh_curve(curve)
            host, port = addresses.http.split(":")
            with nullcontext() if shakes else pytest.raises((ssl.SSLError, ConnectionResetError)):
                _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
                writer.transport.abort()


async def test_admin_speaks_tls_too(files: Files) -> None:
    class Reloads:
        async def reload(self, model: str, checkpoint: str) -> Reloaded:
            return Reloaded("m", "1", "2", 3)

    admin = AdminServer(Reloads(), Access(AccessSettings()), Certificates(settings_of(files, **files.mutual())))
    address = await admin.start("127.0.0.1", 0)
    try:
        async with channel_to(address, files.authority, signed("operator", files.authority)) as channel:
            done = await ranking_pb2_grpc.AdminStub(channel).Reload(ranking_pb2.ReloadRequest(), timeout=WAIT_S)
            assert done.version == "2"
        async with channel_to(address, files.authority) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await ranking_pb2_grpc.AdminStub(channel).Reload(ranking_pb2.ReloadRequest(), timeout=WAIT_S)
    finally:
        await admin.stop()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tls_cert_file": "c"}, "tls_key_file: got nothing, must be given with tls_cert_file"),
        ({"tls_key_file": "k"}, "tls_cert_file: got nothing, must be given with tls_key_file"),
        ({"tls_client_ca_file": "a"}, "tls_client_ca_file: got a file, must not be given without tls_cert_file"),
        ({"tls_client_certs": "optional"}, "tls_client_certs: got optional, must not be given without tls_client_ca"),
    ],
)
def test_settings_of_tls_must_fit(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(None, FREE_PORTS | settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"])
def test_loopback_needs_no_lock(host: str) -> None:
    assert load_config(None, FREE_PORTS | {"grpc_host": host, "http_host": host}).grpc_host == host


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.7", "ranker.internal", "::ffff:10.0.0.7", "127.0.0.1.example"]
)
@pytest.mark.parametrize("setting", ["grpc_host", "http_host", "admin_host"])
def test_other_addresses_need_a_lock_or_a_word(files: Files, setting: str, host: str) -> None:
    settings = FREE_PORTS | {"admin_port": 0, setting: host}
    with pytest.raises(ConfigError, match=f"{setting}: got '{host}', must be of loopback .* insecure says that"):
        load_config(None, settings)
    for unlocked in (files.settings, files.mutual(tls_client_certs="optional")):
        with pytest.raises(ConfigError, match=f"{setting}: got"):
            load_config(None, settings | unlocked)
    for locked in (files.mutual(), {"insecure": True}):
        assert getattr(load_config(None, settings | locked), setting) == host


def test_an_admin_that_is_off_listens_nowhere() -> None:
    assert load_config(None, FREE_PORTS | {"admin_host": "0.0.0.0"}).admin_port is None


def test_files_are_found_by_front_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, FREE_PORTS | {"tls_cert_file": "c", "tls_key_file": "k", "tls_client_ca_file": "a"})
    assert [config.tls_cert_file, config.tls_key_file, config.tls_client_ca_file] == [tmp_path / n for n in "cka"]


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("sslscan") is None, reason="sslscan is not installed")
async def test_a_scanner_finds_nothing_weak(files: Files) -> None:
    async with serving(**files.settings) as (_, addresses):
        for address in (addresses.grpc, addresses.http):
            scan = await asyncio.create_subprocess_exec(
                "sslscan", "--xml=-", "--no-colour", address, stdout=asyncio.subprocess.PIPE
            )
            output, _ = await asyncio.wait_for(scan.communicate(), 300)
            (found,) = ElementTree.fromstring(output).iter("ssltest")
            spoken = {f"{one.get('type')} {one.get('version')}": one.get("enabled") for one in found.iter("protocol")}
            assert spoken.pop("tls 1.2") == spoken.pop("tls 1.3") == "1"
            assert set(spoken.values()) == {"0"}
            ciphers = {str(one.get("cipher")): int(one.get("bits") or 0) for one in found.iter("cipher")}
            assert ciphers and all("GCM" in name or "POLY1305" in name for name in ciphers)
            assert all(name.startswith(("TLS_", "ECDHE-")) for name in ciphers) and min(ciphers.values()) >= 128
            assert {one.get("supported") for one in found.iter("renegotiation")} == {"0"}
            assert {one.get("vulnerable") for one in found.iter("heartbleed")} == {"0"}
