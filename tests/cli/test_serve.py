"""The flags of `mfalcon serve` are the settings: what they say, which source wins, and what is kept secret."""

import signal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mfalcon.cli.serve import read_settings, serve
from mfalcon.errors import ConfigError
from server.config import ServerConfig


def test_the_help_shows_every_setting_with_its_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as end:
        read_settings(["--help"])
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for name, field in ServerConfig.model_fields.items():
        default = "not given" if field.default is None else field.default
        assert f" --{name.replace('_', '-')} " in told
        assert f" {field.description} (default: {default})" in told


def test_a_flag_wins_over_the_environment_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.toml"
    file.write_text("checkpoint = 'c'\ngrpc_port = 1\nhttp_port = 1\nqueue_size = 1\n")
    monkeypatch.setenv("MFALCON_CONFIG", str(file))
    monkeypatch.setenv("MFALCON_GRPC_PORT", "2")
    monkeypatch.setenv("MFALCON_HTTP_PORT", "2")
    config = read_settings(["--grpc-port", "3"])
    assert (config.grpc_port, config.http_port, config.queue_size, config.threads) == (3, 2, 1, 0)
    monkeypatch.setenv("MFALCON_CONFIG", "nowhere.toml")
    assert read_settings(["--config", str(file)]).queue_size == 1


@pytest.mark.parametrize("word", ["true", "false"])
def test_a_boolean_is_a_word(word: str) -> None:
    config = read_settings(["--checkpoint=c", "--ready-without-redis", word])
    assert config.ready_without_redis is (word == "true")


@pytest.mark.parametrize("arguments", [["--redis-ulr", "redis://:pw@h"], ["-redis-url=redis://:pw@h"]])
def test_a_mistyped_flag_tells_no_secret(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"-redis-...: there is no such setting; did you mean redis_url") as refused:
        read_settings(arguments)
    assert "pw" not in str(refused.value)


def test_a_hangup_ends_no_server_that_cannot_obey_it_yet() -> None:
    before = signal.getsignal(signal.SIGHUP)
    command = typer.Typer()
    command.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        serve
    )
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert CliRunner().invoke(command, ["--help"]).exit_code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_flag_without_its_value_is_told_once() -> None:
    with pytest.raises(ConfigError, match=r"^argument --checkpoint: expected one argument"):
        read_settings(["--checkpoint"])
