"""Commands that call a server speak TLS to it, with a certificate of their own where the server asks for one."""

import asyncio
import re
from pathlib import Path

import pytest

from loadtest.load.grpc_target import GrpcTarget
from loadtest.load.http_target import HttpTarget
from loadtest.load.process_metrics import process_metrics
from mfalcon.cli.calling import calling, context_of, tls_of
from mfalcon.cli.history import history
from mfalcon.cli.rank import rank
from mfalcon.cli.reload import reload
from mfalcon.errors import CallFailed, ConfigError
from server.access.access import Access
from server.config import load_config
from server.grpc.admin import AdminServer
from server.reload import Reloaded
from server.service import Service
from server.settings.access import AccessSettings
from server.tls import Certificates
from tests.certificates import LOCAL, signed
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS


class Reloads:
    async def reload(self, model: str, checkpoint: str) -> Reloaded:
        return Reloaded("m", "1", "2", 3)


async def test_commands_reach_a_server_that_asks_for_a_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = signed("authority")
    cert, key = signed("server", authority, LOCAL).write(tmp_path, "server")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.cert_pem)
    own = dict(zip(("tls_cert", "tls_key"), signed("me", authority).write(tmp_path, "me"), strict=True))
    config = load_config(
        None,
        FREE_PORTS | {"tls_cert_file": cert, "tls_key_file": key, "tls_client_ca_file": ca, "drain_seconds": 1},
    )
    service = Service(config)
    addresses = await service.listen()
    await service.serve(FakeEngine())
    admin = AdminServer(Reloads(), Access(AccessSettings()), Certificates(config))
    admin_address = await admin.start("127.0.0.1", 0)
    try:
        await asyncio.to_thread(
            lambda: rank("ann", "1,2", target=addresses.grpc, tls_ca=ca, json_output=True, **own)  # type: ignore[arg-type]
        )
        await asyncio.to_thread(lambda: history("ann", target=addresses.grpc, tls_ca=ca, **own))  # type: ignore[arg-type]
        await asyncio.to_thread(lambda: reload(admin_address, tls_ca=ca, **own))  # type: ignore[arg-type]
        said = capsys.readouterr().out
        assert '"user"' in said and "version 2 instead of 1" in said
        for call in (lambda: reload(admin_address, tls_ca=ca, timeout_s=1.0),):
            with pytest.raises(CallFailed, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
                await asyncio.to_thread(call)
        for given, lacks in (({}, "--tls-ca"), ({"tls_ca": ca}, "--tls-cert")):
            with pytest.raises(CallFailed, match=f"UNAVAILABLE: .*{lacks}"):
                await asyncio.to_thread(
                    lambda given=given: rank("ann", "1,2", target=addresses.grpc, timeout=1.0, **given)  # type: ignore[misc]
                )

        tls, verify = tls_of(ca, own["tls_cert"], own["tls_key"]), context_of(ca, own["tls_cert"], own["tls_key"])
        for target in (GrpcTarget(addresses.grpc, 1, tls=tls), HttpTarget(f"https://{addresses.http}", verify)):
            assert (await target.model()).name == "fake"
            await target.close()
        async with process_metrics(f"https://{addresses.http}", verify) as sample:
            assert await sample()
    finally:
        await admin.stop()
        await service.stop()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("ca", "cert", None), "--tls-key: got nothing, must be given with --tls-cert"),
        (("ca", None, "key"), "--tls-cert: got nothing, must be given with --tls-key"),
        ((None, "cert", "key"), "--tls-ca: got nothing, must be given with --tls-cert"),
        (("none", None, None), "--tls-ca: cannot read none: No such file or directory"),
    ],
)
def test_options_that_do_not_fit_are_told(given: tuple[str | None, ...], says: str) -> None:
    ca, cert, key = (None if name is None else Path(name) for name in given)
    with pytest.raises(ConfigError, match=re.escape(says)):
        tls_of(ca, cert, key)


def test_without_any_option_nothing_is_encrypted() -> None:
    assert tls_of(None, None, None) is None
    with calling("127.0.0.1:1") as client:
        assert client is not None
