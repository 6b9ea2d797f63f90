"""A client of a running server whose errors end a command as one line, and the options by which it is reached."""

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mfalcon.errors import CallFailed, ConfigError
from mfalcon_client import Client, ClientError, InvalidArgument, Tls, TokenFile

_PANEL = "TLS"
TlsCaOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        metavar="FILE",
        help="Speak TLS to a server whose certificate is signed by one of these authorities (PEM).",
        rich_help_panel=_PANEL,
    ),
]
TlsCertOption = Annotated[
    Path | None,
    typer.Option(
        "--tls-cert",
        metavar="FILE",
        help="This client's own certificate (PEM); needs --tls-ca.",
        rich_help_panel=_PANEL,
    ),
]
TlsKeyOption = Annotated[
    Path | None,
    typer.Option("--tls-key", metavar="FILE", help="Its private key (PEM).", rich_help_panel=_PANEL),
]

TokenOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        envvar="MFALCON_TOKEN_FILE",
        help="File with the bearer token that the server asks for; without TLS it is sent to this machine alone.",
        rich_help_panel="Access",
    ),
]
_LOOPBACK = re.compile(r"(?:dns:///|ipv[46]:)?(?:localhost|127\.[0-9.]+|\[::1\])(?::[0-9]+)?|unix:.*")


def token_of(path: Path | None, target: str, tls: Tls | None) -> TokenFile | None:
    """What the option says. ConfigError for a file that has no token, and where anybody on the way could read it."""
    if path is None:
        return None
    if tls is None and not _LOOPBACK.fullmatch(target):
        raise ConfigError(
            f"--token-file: must not be given for {target} without --tls-ca: anybody on the way could read it"
        )
    token = TokenFile(path)
    try:
        token()
    except InvalidArgument as error:
        raise ConfigError(f"--token-file: {error.details.removeprefix('token: ')}") from None
    return token


def tls_of(ca: Path | None, cert: Path | None, key: Path | None) -> Tls | None:
    """What the three options say; None without any. ConfigError for one that is alone, and for a file that cannot be
    read.
    """
    if (cert is None) != (key is None):
        given, lacking = ("--tls-cert", "--tls-key")[:: 1 if key is None else -1]
        raise ConfigError(f"{lacking}: got nothing, must be given with {given}")
    if ca is None:
        if cert is not None:
            raise ConfigError("--tls-ca: got nothing, must be given with --tls-cert")
        return None
    return Tls(
        root_certificates=_read("--tls-ca", ca),
        private_key=None if key is None else _read("--tls-key", key),
        certificate_chain=None if cert is None else _read("--tls-cert", cert),
    )


def context_of(ca: Path, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """The same for HTTP. ConfigError for files that OpenSSL refuses."""
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise ConfigError(f"--tls-ca, --tls-cert, --tls-key: refused by OpenSSL: {error}") from error
    return context


def _read(option: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {error.strerror}") from error


@contextmanager
def calling(
    target: str, timeout_s: float = 10.0, tls: Tls | None = None, token_file: Path | None = None
) -> Iterator[Client]:
    """A client until the end of the block. What it raises becomes CallFailed. Raises what `token_of` does."""
    token = token_of(token_file, target, tls)
    with Client(target, timeout_s=timeout_s, tls=tls, token=token, token_in_clear=True) as client:
        try:
            yield client
        except ClientError as error:
            hint = _hint(error, tls, token)
            raise CallFailed(error.code, f"{error.details}{hint}") from error


def _hint(error: ClientError, tls: Tls | None, token: TokenFile | None) -> str:
    """The option that is probably missing; "" where nothing speaks for one."""
    if error.code == "UNAUTHENTICATED" and token is None:
        return " (--token-file brings one)"
    if error.code == "UNAVAILABLE" and "Socket closed" in error.details:
        if tls is None:
            return " (a server that speaks TLS closes so: --tls-ca)"
        if tls.certificate_chain is None:
            return " (a server that asks for a client's certificate closes so: --tls-cert, --tls-key)"
    return ""
