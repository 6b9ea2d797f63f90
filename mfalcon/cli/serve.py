"""`mfalcon serve`: its flags are made from the settings themselves, so that there is one list of them."""

import inspect
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from server.app import serve as run
from server.config import ServerConfig, load_config


def serve(config: Path | None, **flags: str | None) -> None:
    """Serve a checkpoint over gRPC and HTTP until SIGTERM or Ctrl-C.

    A setting comes from its flag, else from the environment (MFALCON_GRPC_PORT and so on), else from the TOML file
    of --config, else from its default.
    """
    run(load_config(config, flags))


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    default = "required" if field.default is PydanticUndefined else f"default {field.default}"
    help_text = field.description if field.default is None else f"{field.description} \\[{default}]"
    option = typer.Option(f"--{name.replace('_', '-')}", help=help_text, show_default=False, metavar=_metavar(field))
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    for kind, shown in ((bool, "true|false"), (int, "N"), (float, "SECONDS"), (Path, "DIR")):
        if kind in (field.annotation, *get_args(field.annotation)):
            return shown
    return "TEXT"


_config = typer.Option(help="TOML file of settings.", metavar="FILE", envvar="MFALCON_CONFIG", show_default=False)
serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, _config]
        ),
        *(_option(name, field) for name, field in ServerConfig.model_fields.items() if name != "models"),
    ]
)
