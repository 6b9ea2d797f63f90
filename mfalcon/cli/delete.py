"""`mfalcon delete`: have a running server forget users."""

import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, calling, tls_of
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.rank import DEFAULT_TARGET, TargetOption
from mfalcon.errors import CallFailed, ConfigError
from mfalcon_client import AccessDenied, Client, ClientError

STDIN = "-"
_stderr = Console(stderr=True, highlight=False)


def delete(
    users: Annotated[list[str], typer.Argument(metavar="USER...", help="Their ids; - reads one a line.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for each.", min=0.001)] = 30.0,
    target: TargetOption = DEFAULT_TARGET,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    json_output: JsonOption = False,
) -> None:
    """Delete users: their histories and whatever was made of them; exit code 1 if one could not be deleted.

    Deleting again, or a user who is not known, succeeds. Whoever could not be deleted is named: ask again for him.
    """
    if STDIN in users and not yes:
        raise ConfigError("--yes: must be given with -, since standard input cannot be asked")
    if not yes:
        shown = ", ".join(map(repr, users[:5])) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
        typer.confirm(f"Delete {shown} at {target}, for good?", abort=True)
    with calling(target, timeout, tls_of(tls_ca, tls_cert, tls_key), token_file) as client:
        num_deleted, failed = delete_each(client, _ids(users))
    if json_output:
        print_json({"deleted": num_deleted, "failed": failed})
    else:
        Console(highlight=False).print(f"{num_deleted:,} deleted" + (f", {len(failed):,} not" if failed else ""))
    if failed:
        raise typer.Exit(1)


def delete_each(client: Client, users: Iterator[str]) -> tuple[int, list[str]]:
    """How many were deleted, and who was not; why is told on standard error. Raises CallFailed where none may be."""
    num_deleted, failed = 0, []
    for user_id in users:
        try:
            client.delete_user(user_id)
            num_deleted += 1
        except AccessDenied as error:
            raise CallFailed(error.code, error.details) from error
        except ClientError as error:
            failed.append(user_id)
            _stderr.print(Text(f"{user_id!r}: {error}"))
    return num_deleted, failed


def _ids(users: Sequence[str]) -> Iterator[str]:
    for user_id in users:
        if user_id != STDIN:
            yield user_id
            continue
        for line in sys.stdin:
            if line := line.rstrip("\r\n"):
                yield line
