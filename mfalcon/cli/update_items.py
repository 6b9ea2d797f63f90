"""`mfalcon update-items`: have a running server serve a model with other item rows, or leave them where it looks."""

from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import typer
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, tls_of, token_of
from mfalcon.errors import CallFailed, DataError, InvalidInput
from mfalcon.items.delta import Delta
from mfalcon.items.delta_file import write_delta
from mfalcon.items.messages import messages
from proto import ranking_pb2_grpc


def update_items(
    columns: Annotated[
        Path,
        typer.Argument(
            help="safetensors file: item_id int64 [n], and any of vector float32 [n, dim], bias float32 [n, tasks] and "
            "side.NAME.",
        ),
    ],
    version: Annotated[str, typer.Option(help="Of the model that the rows belong to: `version` of GetModel.")],
    target: Annotated[str | None, typer.Option(help="Admin address of a server (its --admin-port).")] = None,
    directory: Annotated[Path | None, typer.Option(help="Write the delta here: the --items-dir of servers.")] = None,
    model: Annotated[str, typer.Option(help="Name of the model; the default one if not given.")] = "",
    number: Annotated[
        int, typer.Option(min=0, help="Of the delta, one more than the last one's; 0 for the next, of a server.")
    ] = 0,
    replaces: Annotated[
        bool, typer.Option("--replaces", help="All other rows become those of the checkpoint again.")
    ] = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    timeout_s: Annotated[float, typer.Option(help="Longest wait for the answer, in seconds.")] = 600.0,
) -> None:
    """Change or add item rows while a model serves; all of a delta, or nothing."""
    if (target is None) == (directory is None):
        raise typer.BadParameter("give either --target, a server, or --directory, that of servers")
    delta = _read(columns, number, version, replaces=replaces)
    if directory is not None:
        if not number:
            raise typer.BadParameter("--number must be at least 1 with --directory: it gives the order")
        typer.echo(f"{write_delta(directory, delta)}: {delta.num_rows} rows")
        return
    assert target is not None
    tls = tls_of(tls_ca, tls_cert, tls_key)
    token = token_of(token_file, target, tls)
    metadata = () if token is None else (("authorization", f"Bearer {token()}"),)
    with grpc.insecure_channel(target) if tls is None else grpc.secure_channel(target, tls.credentials) as channel:
        try:
            stub = ranking_pb2_grpc.AdminStub(channel)
            done = stub.UpdateItems(messages(model, delta), timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            details = error.details() or ""
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                details = f"{target} takes no items; must be the server's --admin-port"
            raise CallFailed(error.code().name, details) from error
    typer.echo(f"{done.model}: items {done.items_version}, {done.num_rows} rows of {done.num_items}")


def _read(path: Path, number: int, version: str, *, replaces: bool) -> Delta:
    try:
        arrays = load_file(path)
        ids = arrays["item_id"]
    except KeyError as error:
        raise DataError(f"{path}: has no item_id") from error
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from error
    side = {name.removeprefix("side."): np.asarray(one) for name, one in arrays.items() if name.startswith("side.")}
    try:
        return Delta(number, version, ids, arrays.get("vector"), arrays.get("bias"), side, replaces)
    except InvalidInput as error:
        raise DataError(f"{path}: {error}") from error
