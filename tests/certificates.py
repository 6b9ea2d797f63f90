"""Certificates of tests: an authority, and what it signs."""

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
LOCAL = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate and its private key, and both as PEM."""

    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes

    @property
    def cert_pem(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """Without a passphrase."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """NAME.pem and NAME.key."""
        cert, key = directory / f"{name}.pem", directory / f"{name}.key"
        cert.write_bytes(self.cert_pem)
        key.write_bytes(self.key_pem)
        return cert, key


def signed(
    name: str,
    by: Signed | None = None,
    alternatives: Sequence[x509.GeneralName] = (),
    *,
    begins: timedelta = -DAY,
    ends: timedelta = 365 * DAY,
    key: CertificateIssuerPrivateKeyTypes | None = None,
) -> Signed:
    """A certificate of a common name, signed by another one; an authority where it signs itself. begins, ends: from
    now.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key((by.key if by else key).public_key())
    builder = builder.add_extension(issuer, critical=False)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(own, critical=False)
    if by is None:
        builder = builder.add_extension(SIGNS, critical=True)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return Signed(builder.sign(by.key if by else key, hashes.SHA256()), key)


def tls_in(directory: Path) -> tuple[dict[str, object], ssl.SSLContext]:
    """Settings of a server with a certificate of this machine, and whom its clients trust then."""
    authority = signed("authority")
    certificate, key = signed("server", authority, LOCAL).write(directory, "server")
    trusted = ssl.create_default_context(cadata=authority.cert_pem.decode())
    return {"tls_cert_file": certificate, "tls_key_file": key}, trusted
