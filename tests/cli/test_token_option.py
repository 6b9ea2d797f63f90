"""Commands that call a server take the token that it asks for from a file, and send it to nobody else."""

import asyncio
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.load.grpc_target import GrpcTarget
from loadtest.load.http_target import HttpTarget
from mfalcon.cli.calling import calling, token_of
from mfalcon.cli.history import history
from mfalcon.cli.main import app
from mfalcon.cli.rank import rank
from mfalcon.cli.reload import reload
from mfalcon.errors import CallFailed, ConfigError
from mfalcon_client import Tls, TokenFile
from server.grpc.admin import AdminServer
from server.reload import Reloaded
from tests.server.access.credentials import access_of, one_of_each, token
from tests.server.harness import serving


class Reloads:
    async def reload(self, model: str, checkpoint: str) -> Reloaded:
        return Reloaded("m", "1", "2", 3)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A file with the token of each right, by its name."""
    made = {}
    for name in ("rank", "admin", "append"):
        made[name] = tmp_path / name
        made[name].write_text(f"{token(name)}\n")
    return made


async def test_commands_reach_a_server_that_asks_for_a_token(
    tmp_path: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tokens_file=one_of_each(tmp_path / "callers.toml")) as running:
        target = running.addresses.grpc
        await asyncio.to_thread(lambda: rank("ann", "1,2", target=target, token_file=files["rank"], json_output=True))
        await asyncio.to_thread(lambda: history("ann", target=target, token_file=files["admin"]))
        assert '"user"' in capsys.readouterr().out
        for given, says in (
            (None, r"UNAUTHENTICATED: .* \(--token-file brings one\)"),
            (files["append"], "PERMISSION_DENIED"),
        ):
            with pytest.raises(CallFailed, match=says):
                await asyncio.to_thread(lambda given=given: rank("ann", "1,2", target=target, token_file=given))  # type: ignore[misc]
        words = ["--user", "ann", "--candidates", "1,2", "--target", target, "--json"]
        monkeypatch.setenv("MFALCON_TOKEN_FILE", str(files["rank"]))
        result = await asyncio.to_thread(lambda: CliRunner().invoke(app, ["rank", *words]))
        assert result.exit_code == 0, result.output
        known = TokenFile(files["rank"])
        for each in (GrpcTarget(target, 1, token=known), HttpTarget(f"http://{running.addresses.http}", token=known)):
            assert (await each.model()).name == "fake"
            await each.close()


@pytest.mark.parametrize("target", ["ranker.internal:50051", "10.0.0.1:50051", "dns:///ranker:50051", "127.evil.com:1"])
def test_a_token_goes_to_nobody_elsewhere_in_clear(files: dict[str, Path], target: str) -> None:
    with pytest.raises(ConfigError, match=f"--token-file: must not be given for {re.escape(target)} without --tls-ca"):
        token_of(files["rank"], target, None)
    assert token_of(files["rank"], target, Tls()) is not None


@pytest.mark.parametrize(
    "target", ["127.0.0.1:50051", "localhost:1", "[::1]:50051", "unix:/run/x", "dns:///localhost:1"]
)
def test_this_machine_is_near_enough(files: dict[str, Path], target: str) -> None:
    assert token_of(files["rank"], target, None) is not None


def test_a_file_without_a_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--token-file: cannot read .*: No such file"):
        token_of(tmp_path / "none", "localhost:1", None)
    (tmp_path / "empty").write_text(" ")
    with pytest.raises(ConfigError, match=r"--token-file: .* is empty"):
        token_of(tmp_path / "empty", "localhost:1", None)
    with calling("127.0.0.1:1") as client:
        assert client is not None


async def test_a_reload_wants_the_right_to(tmp_path: Path, files: dict[str, Path]) -> None:
    access = access_of(one_of_each(tmp_path / "callers.toml"))
    server = AdminServer(Reloads(), access)
    address = await server.start("127.0.0.1", 0)
    try:
        for name, says in (("rank", "PERMISSION_DENIED"), (None, "UNAUTHENTICATED")):
            with pytest.raises(CallFailed, match=says):
                await asyncio.to_thread(lambda name=name: reload(address, token_file=files[name] if name else None))  # type: ignore[misc]
        await asyncio.to_thread(lambda: reload(address, token_file=files["admin"]))
    finally:
        await server.stop()
