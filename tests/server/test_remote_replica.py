"""A model of another replica, asked by a server: its words and its errors."""

from dataclasses import replace
from pathlib import Path

import pytest

from mfalcon.errors import EngineFailure, InvalidInput
from mfalcon.types import RankRequest
from server.remote_replica import RemoteReplica
from tests.server.access.credentials import one_of_each, token
from tests.server.fake_engine import MODEL
from tests.server.harness import Running, serving
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
