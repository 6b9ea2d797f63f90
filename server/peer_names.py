"""By what names a client's certificate identifies it, on either transport."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

CERTIFICATE_NAMES: Final = "certificate_names"
"""Where they are in the state of an ASGI scope: a tuple of names, empty without a certificate."""

_GRPC: Final = (("uri", "peer_uri"), ("dns", "peer_dns"), ("cn", "x509_common_name"))
_HTTP: Final = (("uri", "URI"), ("dns", "DNS"))


def names_over_grpc(properties: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Of what `ServicerContext.auth_context` gives: "uri:…" and "dns:…", the alternative names, then "cn:…", the common
    name. The kind is a part of a name, so that nobody is another one by a common name that reads like a URI.
    """
    return tuple(
        f"{kind}:{value.decode('utf-8', 'replace')}" for kind, key in _GRPC for value in properties.get(key, ())
    )


def names_over_http(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Of what `SSLObject.getpeercert` gives; see `names_over_grpc`."""
    if not certificate:
        return ()
    alternative: Sequence[tuple[str, str]] = certificate.get("subjectAltName", ())
    names = [f"{kind}:{value}" for kind, key in _HTTP for found, value in alternative if found == key]
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return (*names, *(f"cn:{value}" for value in common))
