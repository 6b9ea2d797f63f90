"""`mfalcon delete`: who could not be deleted is named, and keeps nobody else."""

import asyncio
import io

import pytest
import typer

from mfalcon.cli.delete import delete
from mfalcon.errors import ConfigError, StorageUnavailable
from mfalcon.types import no_events
from tests.server.fake_engine import FakeEngine
from tests.server.harness import serving_engine


class Stubborn(FakeEngine):
    """Cannot delete one user now."""

    async def delete_user(self, user_id: str, deadline: float | None) -> None:
        """See FakeEngine."""
        if user_id == "bob":
            raise StorageUnavailable("Redis is away", may_be_done=True)
        await super().delete_user(user_id, deadline)


async def test_each_is_deleted_whatever_becomes_of_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Stubborn()
    engine.histories = {user: no_events() for user in ("ann", "bob", "cyd é", "dan")}
    monkeypatch.setattr("sys.stdin", io.StringIO("cyd é\r\n\nnobody\n"))
    async with serving_engine(engine) as served:
        with pytest.raises(typer.Exit) as ended:
            await asyncio.to_thread(delete, ["ann", "bob", "-"], yes=True, timeout=1.0, target=served.addresses.grpc)
    assert ended.value.exit_code == 1
    told = capsys.readouterr()
    assert told.out == "3 deleted, 1 not\n"
    assert "'bob': UNAVAILABLE: Redis is away" in told.err.replace("\n", " ")
    assert set(engine.histories) == {"bob", "dan"}


async def test_nothing_is_deleted_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    engine.histories = {"ann": no_events()}
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    async with serving_engine(engine) as served:
        with pytest.raises(typer.Abort):
            await asyncio.to_thread(delete, ["ann"], target=served.addresses.grpc)
        with pytest.raises(ConfigError, match="--yes: must be given with -"):
            await asyncio.to_thread(delete, ["-"], target=served.addresses.grpc)
    assert set(engine.histories) == {"ann"}
