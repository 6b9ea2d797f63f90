"""Settings of TLS, of the metrics' own port, and of who may listen beyond this machine."""

import ipaddress
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from server.settings.kinds import File


class TlsSettings(BaseModel):
    """With a certificate every port of the server speaks TLS, and nothing else."""

    tls_cert_file: File | None = Field(
        default=None,
        description="PEM file of the server's certificate and those that signed it; every port speaks TLS then. It is "
        "read again when it changes.",
    )
    tls_key_file: File | None = Field(default=None, description="PEM file of its private key, without a passphrase.")
    tls_client_ca_file: File | None = Field(
        default=None, description="PEM file of the authorities that sign clients' certificates (mutual TLS)."
    )
    tls_client_certs: Literal["required", "optional"] = Field(
        default="required",
        description="Whether a client must have a certificate where there is a tls_client_ca_file. Optional ones are "
        "asked for over HTTP alone: gRPC's Python library cannot ask without insisting.",
    )
    tls_handshake_timeout_s: float = Field(
        default=10.0, ge=0.01, le=3_600, description="Longest time for a TLS handshake, in s."
    )
    tls_handshakes_per_s: float = Field(
        default=100.0,
        ge=0,
        le=10**6,
        description="TLS handshakes a second that each port of HTTP begins, in each process; more wait for their turn, "
        "addresses one after the other, tls_handshake_timeout_s at most. 0 begins all at once.",
    )
    metrics_host: str = Field(
        default="127.0.0.1", min_length=1, description="Address that the port of the metrics listens on."
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="Port of /metrics, /livez and /readyz over HTTP; 0 takes any free one. If not given, /metrics is "
        "on the port of HTTP.",
    )
    insecure: bool = Field(
        default=False,
        description="Listen on other addresses than loopback although nobody is asked who they are: for networks whose "
        "every member may rank, append, read and delete.",
    )

    @property
    def has_tls(self) -> bool:
        """Whether the ports speak TLS."""
        return self.tls_cert_file is not None

    @property
    def requires_client_certs(self) -> bool:
        """Whether nobody is heard without a certificate."""
        return self.tls_client_ca_file is not None and self.tls_client_certs == "required"

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            given, lacking = ("tls_cert_file", "tls_key_file")[:: 1 if self.tls_cert_file is not None else -1]
            raise ValueError(f"{lacking}: got nothing, must be given with {given}")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file: got a file, must not be given without tls_cert_file")
        if self.tls_client_certs != "required" and self.tls_client_ca_file is None:
            raise ValueError(
                f"tls_client_certs: got {self.tls_client_certs}, must not be given without tls_client_ca_file"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name but localhost may be anybody's."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
