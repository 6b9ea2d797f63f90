"""A model of another replica, asked by a server: its words and its errors."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from mfalcon.errors import ConfigError, EngineFailure, InvalidInput, NotReady
from mfalcon.types import RankRequest
from server.config import load_config
from server.remote_replica import RemoteReplica, tls_to
from server.service import Service
from server.settings.models import MemberConfig
from tests.certificates import LOCAL, signed
from tests.server.access.credentials import one_of_each, token
from tests.server.fake_engine import MODEL, FakeEngine
from tests.server.harness import FREE_PORTS, Running, serving
from tests.small import rank_request

REQUEST: RankRequest = replace(rank_request("ann", [1, 2]), context={})


async def test_what_it_refuses_as_its_callers_error_is_ours_too(running: Running) -> None:
    replica = RemoteReplica(running.addresses.grpc, MODEL.name)
    assert (await replica.rank(REQUEST, 10.0)).num_scored == 2
    with pytest.raises(InvalidInput) as refused:
        await replica.rank(replace(REQUEST, context={"gender": 2}), 10.0)
    assert (refused.value.field, refused.value.limit) == ("context.gender", "0 to 1")
    running.engine.fault = EngineFailure("the step failed")
    with pytest.raises(EngineFailure, match="the step failed"):
        await replica.rank(REQUEST, 10.0)
    await replica.close()


async def test_it_is_asked_with_the_token_in_a_file(tmp_path: Path) -> None:
    async with serving(tokens_file=one_of_each(tmp_path / "callers.toml")) as running:
        path = tmp_path / "token"
        path.write_text(token("append"))
        replica = RemoteReplica(running.addresses.grpc, MODEL.name, path)
        with pytest.raises(EngineFailure, match="PERMISSION_DENIED") as refused:
            await replica.rank(REQUEST, 10.0)
        assert token("append") not in str(refused.value)
        (tmp_path / "next").write_text(token("rank"))
        (tmp_path / "next").replace(path)
        assert (await replica.rank(REQUEST, 10.0)).num_scored == 2
        await replica.close()


async def test_it_is_asked_over_tls_with_a_certificate_of_ones_own(tmp_path: Path) -> None:
    authority = signed("authority")
    cert, key = signed("replica", authority, LOCAL).write(tmp_path, "replica")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(authority.cert_pem)
    own_cert, own_key = signed("merger", authority).write(tmp_path, "merger")
    settings = FREE_PORTS | {"tls_cert_file": cert, "tls_key_file": key, "tls_client_ca_file": ca, "drain_seconds": 1}
    service = Service(load_config(None, settings))
    address = (await service.listen()).grpc
    await service.serve(FakeEngine())
    try:
        own = MemberConfig(model="m", address=address, tls_ca_file=ca, tls_cert_file=own_cert, tls_key_file=own_key)
        replica = RemoteReplica(address, MODEL.name, tls=tls_to(own))
        assert (await replica.rank(REQUEST, 30.0)).num_scored == 2
        await replica.close()
        for member in (
            MemberConfig(model="m", address=address, tls_ca_file=ca),
            MemberConfig(model="m", address=address),
        ):
            stranger = RemoteReplica(address, MODEL.name, tls=tls_to(member))
            with pytest.raises(NotReady):
                await stranger.rank(REQUEST, 30.0)
            await stranger.close()
    finally:
        await service.stop()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"tls_cert_file": "c", "tls_ca_file": "a", "address": "h:1"}, "got one of them, must be both or none"),
        ({"tls_cert_file": "c", "tls_key_file": "k", "address": "h:1"}, "must not be given without tls_ca_file"),
        ({"tls_ca_file": "a"}, "must not be given without an address"),
    ],
)
def test_files_for_a_member_must_fit(files: dict[str, str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        MemberConfig.model_validate({"model": "m"} | files)


def test_a_file_for_a_member_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls_ca_file: cannot read .*none: No such file"):
        tls_to(MemberConfig(model="m", address="h:1", tls_ca_file=tmp_path / "none"))
