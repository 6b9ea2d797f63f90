"""A gRPC server's address: taken in clear or with TLS, and why one could not be had."""

import grpc.aio

from mfalcon.errors import ConfigError
from server.addresses import authority, listen
from server.tls import Certificates


def bind(server: grpc.aio.Server, transport: str, host: str, port: int, certificates: Certificates | None) -> int:
    """Have a server listen there from its start on, and return the port; port 0 is any free one. ConfigError names the
    settings of the transport.
    """
    address = authority(host, port)
    try:
        if certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, certificates.credentials())
    except RuntimeError as error:
        # gRPC does not say why; a plain socket does.
        listen(transport, host, port).close()
        raise ConfigError(f"{transport}_host, {transport}_port: cannot listen on {address}") from error
