"""`mfalcon token`: tokens of callers, and what a server's file of callers holds of them."""

import secrets
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Annotated

import typer

from mfalcon.cli.output import JsonOption, print_json
from mfalcon.errors import ConfigError
from server.access.caller import Right
from server.access.callers_file import NAME, is_name

app = typer.Typer(help="Make tokens, and the tables of a server's tokens_file.", no_args_is_help=True)

PREFIX = "mfk_"
"""So that a scanner of repositories and logs knows a token where it sees one."""
TOKEN_BYTES = 32


@app.callback()
def root() -> None:
    """Make tokens, and the tables of a server's tokens_file."""


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Of the caller, as logs and metrics will show it.")],
    right: Annotated[
        list[Right] | None,
        typer.Option(help="What the caller may do; repeatable. None where the file has the caller already."),
    ] = None,
    days: Annotated[
        int | None, typer.Option(help="Days until the token expires; it never does if not given.", min=1, max=36_500)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Make a token. It is shown once, on standard error; what the server's file gets of it is on standard output.

    To rotate, add the new table beside the old one, hand the token out, and take the old table away.
    """
    if not is_name(name):
        raise ConfigError(f"--name: got {name[:80]!r}, must be {NAME}")
    token = f"{PREFIX}{secrets.token_urlsafe(TOKEN_BYTES)}"
    digest = sha256(token.encode()).hexdigest()
    expires = None if days is None else (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    if json_output:
        print_json({"name": name, "rights": right or [], "token": token, "sha256": digest, "expires": expires})
        return
    if right:
        rights = ", ".join(f'"{each}"' for each in right)
        typer.echo(f'[[callers]]\nname = "{name}"\nrights = [{rights}]\n')
    else:
        typer.echo(
            f'# Below the tables of caller "{name}", not at the end of the file: it would be another caller\'s there.'
        )
    typer.echo(f'[[callers.tokens]]\nsha256 = "{digest}"')
    if expires is not None:
        typer.echo(f"expires = {expires}")
    typer.echo("\n# The token is shown this once, on standard error: for this caller, and nobody else.")
    typer.echo(token, err=True)
