"""`mfalcon serve`: its flags are made from the settings themselves, so that there is one list of them."""

import inspect
import os
import signal
from argparse import ArgumentParser
from pathlib import Path

import typer
from pydantic_settings import CliSettingsSource, SettingsError

from mfalcon.cli.uncollected import uncollected
from mfalcon.errors import ConfigError
from server.config import ServerConfig, did_you_mean, load_config

PASSED_ON = {"add_help_option": False, "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True}}


def serve(context: typer.Context) -> None:
    """Serve a checkpoint over gRPC and HTTP until SIGTERM or Ctrl-C.

    A setting comes from its flag, else from the environment (MFALCON_GRPC_PORT and so on), else from the TOML file
    of --config, else from its default.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it can be obeyed: by default it ends a server that loads
    config = read_settings(context.args)
    with uncollected():
        from server.app import serve as run  # noqa: PLC0415 (it imports torch, which help and refusals need not)

    run(config)


def read_settings(words: list[str]) -> ServerConfig:
    """The settings of a command line; `--help` prints and exits. ConfigError names the flag or setting."""
    source = CliSettingsSource[ArgumentParser](
        ServerConfig,
        cli_prog_name="mfalcon serve",
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_parse_none_str="not given",  # shown as a default, and nobody names a model like this
        cli_exit_on_error=False,
    )
    source.root_parser.description = inspect.getdoc(serve)
    file = os.environ.get("MFALCON_CONFIG") or None
    source.root_parser.add_argument("--config", metavar="FILE", type=Path, default=file, help="TOML file of settings.")
    # argparse takes the last of several in silence, and tells a mistyped flag with its value, which may be a secret.
    given = [word.partition("=")[0] for word in words if word[:1] == "-" and word.strip("-")[:1].isalpha()]
    known = {"-h", "--help", "--config", *(f"--{name.replace('_', '-')}" for name in ServerConfig.model_fields)}
    for flag in given:
        if flag not in known:
            raise ConfigError(f"{flag}: there is no such setting{did_you_mean(flag.strip('-'))}")
        if given.count(flag) > 1:
            raise ConfigError(f"{flag}: it is given {given.count(flag)} times, must be once")
    try:
        flags = vars(source.root_parser.parse_args(words))
        return load_config(flags.pop("config"), source(parsed_args=flags)())
    except SettingsError as error:
        raise ConfigError(str(error).removeprefix("error parsing CLI: ")) from error
