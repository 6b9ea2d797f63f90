"""By what names a client's certificate identifies it, on either transport."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from starlette.types import Scope

Names = tuple[tuple[str, str], ...]
"""(kind, name): "uri" and "dns", the alternative names, then "cn", the common name. The kind is a part of a name, so
that nobody is another one by a common name that reads like a URI.
"""
CLIENT_NAMES: Final = "client_names"
"""Where they are in the TLS extension of an ASGI scope, and in the state of a connection."""

_GRPC: Final = (("uri", "peer_uri"), ("dns", "peer_dns"), ("cn", "x509_common_name"))
_HTTP: Final = (("uri", "URI"), ("dns", "DNS"))


def names_over_grpc(properties: Mapping[str, Iterable[bytes]]) -> Names:
    """Of what `ServicerContext.auth_context` gives."""
    return tuple((kind, value.decode("utf-8", "replace")) for kind, key in _GRPC for value in properties.get(key, ()))


def names_over_http(certificate: Mapping[str, Any] | None) -> Names:
    """Of what `SSLObject.getpeercert` gives."""
    if not certificate:
        return ()
    alternative: Sequence[tuple[str, str]] = certificate.get("subjectAltName", ())
    names = [(kind, value) for kind, key in _HTTP for found, value in alternative if found == key]
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return (*names, *(("cn", value) for value in common))


def tell_client_names(scope: Scope) -> None:
    """Give a request over TLS the extension `tls` of ASGI, with the client's names."""
    if CLIENT_NAMES in scope["state"]:
        scope["extensions"] = {"tls": {CLIENT_NAMES: scope["state"][CLIENT_NAMES]}}
