"""`mfalcon reload`: have a running server exchange a model's checkpoint."""

from pathlib import Path
from typing import Annotated

import grpc
import typer

from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, tls_of, token_of
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.errors import CallFailed
from proto import ranking_pb2, ranking_pb2_grpc


def reload(
    target: Annotated[str, typer.Option(help="Admin address of the server (its --admin-port).")],
    model: Annotated[str, typer.Option(help="Name of the model; the default one if not given.")] = "",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Directory on the server; the one that the model was loaded from if not given."),
    ] = None,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    timeout_s: Annotated[float, typer.Option(help="Longest wait for the answer, in seconds.")] = 600.0,
    json_output: JsonOption = False,
) -> None:
    """Serve another checkpoint without a restart; a bad one leaves the old one serving."""
    request = ranking_pb2.ReloadRequest(model=model, checkpoint=str(checkpoint) if checkpoint else "")
    tls = tls_of(tls_ca, tls_cert, tls_key)
    token = token_of(token_file, target, tls)
    metadata = () if token is None else (("authorization", f"Bearer {token()}"),)
    with grpc.insecure_channel(target) if tls is None else grpc.secure_channel(target, tls.credentials) as channel:
        try:
            done = ranking_pb2_grpc.AdminStub(channel).Reload(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            details = error.details() or ""
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                details = f"{target} does not reload; must be the server's --admin-port"
            raise CallFailed(error.code().name, details) from error
    if json_output:
        print_json({name: getattr(done, name) for name in ("model", "version", "old_version", "took_ms")})
        return
    typer.echo(f"{done.model}: version {done.version} instead of {done.old_version}, after {done.took_ms / 1000:.1f} s")
