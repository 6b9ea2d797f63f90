"""The server's certificate: read, judged, and exchanged for the next one without a restart.

What new connections are given is always one whole state of the files. A state that is bad is told in the log, and the
last good one goes on serving.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from mfalcon.beside import beside
from mfalcon.errors import ConfigError
from server.settings.tls import TlsSettings

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0
MAX_FILE_BYTES: Final = 2**20
MIN_RSA_BITS: Final = 2_048
CURVES: Final = ("secp256r1", "secp384r1")
"""gRPC's TLS library offers no other curve, and no Ed25519: its handshakes would all fail."""
BEGINNING: Final = b"-----BEGIN CERTIFICATE-----"
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secrecy and authenticated encryption alone, as gRPC has it. TLS 1.3 has no others."""
LAST_PART: Final = 0.2
"""Of its life: a certificate that is not replaced by then is told in the log."""
EARLIEST_WARNING: Final = timedelta(days=30)

Age = Literal["young", "old", "expired"]


@dataclass(frozen=True, slots=True)
class Pems:
    """What is in the files."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None

    def __repr__(self) -> str:
        """Without the key."""
        return "Pems()"


@dataclass(frozen=True, slots=True)
class Identity:
    """One whole state of the files that has been found good. context: for connections of HTTP. probed: for those of the
    metrics' port, where clients are let in without a certificate. names: what the certificate is for.
    """

    pems: Pems
    context: ssl.SSLContext
    probed: ssl.SSLContext
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime

    def age(self, now: datetime) -> Age:
        """Whether it is time for another certificate."""
        if now >= self.not_after:
            return "expired"
        last = min(EARLIEST_WARNING, LAST_PART * (self.not_after - self.not_before))
        return "old" if now >= self.not_after - last else "young"


class CertificateGauges(Protocol):
    """Who counts."""

    def serves_until(self, timestamp: float) -> None:
        """The certificate that is served expires at this Unix time, in seconds."""
        ...

    def looked(self, *, replaced: bool) -> None:
        """Files that have changed were taken, or refused."""
        ...


class Certificates:
    """The certificate of a process, for all its ports. Lives on the event loop; `credentials` are asked by gRPC's
    threads too.
    """

    def __init__(
        self,
        settings: TlsSettings,
        gauges: CertificateGauges | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Read the files. ConfigError names the setting, the file and what is wrong with it."""
        self._settings = settings
        self._gauges = gauges
        self._now = now
        self._identity = read_identity(settings, now())
        self._complaint = ""
        self._age: Age = "young"
        self._tell()

    @property
    def identity(self) -> Identity:
        """What new connections are given."""
        return self._identity

    @property
    def context(self) -> ssl.SSLContext:
        """For a new connection of HTTP."""
        return self._identity.context

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server: each of its handshakes is given the present certificate."""
        given = self._identity

        def present() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            if self._identity is given:
                return None
            given = self._identity
            return _configuration(given.pems)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(given.pems),
            present,  # type: ignore[arg-type]  # None is "no change", which its types leave out
            require_client_authentication=self._settings.requires_client_certs,
        )

    async def look(self) -> None:
        """Take what the files hold now, if it has changed and is good; else say in the log why not."""
        try:
            pems = await beside(lambda: read_pems(self._settings))
            if pems != self._identity.pems:
                self._identity = await beside(lambda: read_identity(self._settings, self._now()))
                self._count(replaced=True)
                logger.info("tls: a new certificate is served: %s", in_words(self._identity))
            self._complaint = ""
        except ConfigError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._count(replaced=False)
                logger.error("tls: the certificate of before is served on: %s", error)
        self._tell()

    async def watch(self, seconds: float = LOOK_SECONDS) -> None:
        """Look again and again, until cancelled. Contents are compared: a file may be a symlink to another one, as
        Kubernetes has it, or have been written within one tick of its file system's clock.
        """
        while True:
            await asyncio.sleep(seconds)
            await self.look()

    def _count(self, *, replaced: bool) -> None:
        if self._gauges is not None:
            self._gauges.looked(replaced=replaced)

    def _tell(self) -> None:
        """How long the certificate lasts."""
        if self._gauges is not None:
            self._gauges.serves_until(self._identity.not_after.timestamp())
        before, self._age = self._age, self._identity.age(self._now())
        if self._age == before:
            return
        if self._age == "old":
            logger.warning("tls: the certificate expires soon and was not replaced: %s", in_words(self._identity))
        elif self._age == "expired":
            logger.error("tls: the certificate has expired, clients refuse it: %s", in_words(self._identity))


def certificates_of(settings: TlsSettings, gauges: CertificateGauges | None = None) -> Certificates | None:
    """None where the server speaks no TLS. Raises ConfigError."""
    return Certificates(settings, gauges) if settings.has_tls else None


def in_words(identity: Identity) -> str:
    """Whose certificate it is, and until when."""
    return f"{', '.join(identity.names) or 'no name'}, until {identity.not_after:%Y-%m-%d %H:%M:%S} UTC"


def read_pems(settings: TlsSettings) -> Pems:
    """What the files hold now. Raises ConfigError."""
    assert settings.tls_cert_file is not None and settings.tls_key_file is not None
    ca = settings.tls_client_ca_file
    return Pems(
        _read("tls_cert_file", settings.tls_cert_file),
        _read("tls_key_file", settings.tls_key_file),
        None if ca is None else _read("tls_client_ca_file", ca),
    )


def read_identity(settings: TlsSettings, now: datetime) -> Identity:
    """Read the files and judge them. Raises ConfigError."""
    pems = read_pems(settings)
    certificate = _leaf("tls_cert_file", settings.tls_cert_file, pems.certificate)
    _check_key(settings.tls_key_file, pems.key, certificate)
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now >= not_after:
        raise ConfigError(f"tls_cert_file: {settings.tls_cert_file}: the certificate has expired on {not_after:%c} UTC")
    if now < not_before:
        raise ConfigError(
            f"tls_cert_file: {settings.tls_cert_file}: the certificate is not valid before {not_before:%c} UTC"
        )
    if pems.client_ca is not None:
        _leaf("tls_client_ca_file", settings.tls_client_ca_file, pems.client_ca)
    context = _context(settings, pems, required=settings.requires_client_certs)
    probed = _context(settings, pems, required=False)
    if read_pems(settings) != pems:  # OpenSSL takes files alone: it shall have read what we have judged
        raise ConfigError(f"tls_cert_file: {settings.tls_cert_file}: it is being written")
    return Identity(pems, context, probed, _names(certificate), not_before, not_after)


def _read(setting: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error
    if not 0 < len(content) <= MAX_FILE_BYTES:
        size = "no byte" if not content else f"more than {MAX_FILE_BYTES} bytes"
        raise ConfigError(f"{setting}: {path}: got {size}, must be PEM of at most {MAX_FILE_BYTES} bytes")
    return content


def _leaf(setting: str, path: Path | None, pem: bytes) -> x509.Certificate:
    """The first certificate; the others must be some too."""
    complaint = f"{setting}: {path}: got no certificate, or half of one, must be PEM"
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(complaint) from error
    if len(certificates) != pem.count(BEGINNING):  # the last one was cut off, which is passed over in silence
        raise ConfigError(complaint)
    return certificates[0]


def _check_key(path: Path | None, pem: bytes, certificate: x509.Certificate) -> None:
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise ConfigError(f"tls_key_file: {path}: got a key with a passphrase, must be without one") from error
    except ValueError as error:
        raise ConfigError(f"tls_key_file: {path}: got no private key, or half of one, must be PEM") from error
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < MIN_RSA_BITS:
            raise ConfigError(f"tls_key_file: {path}: got RSA of {key.key_size} bits, must be at least {MIN_RSA_BITS}")
    elif not (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES):
        kind = key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else type(key).__name__.lstrip("_")
        raise ConfigError(f"tls_key_file: {path}: got {kind}, must be RSA or ECDSA on P-256 or P-384")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"tls_key_file: {path}: got another key than that of the first certificate of tls_cert_file")


def _context(settings: TlsSettings, pems: Pems, *, required: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS)
    # OpenSSL's own choice has finite fields in it too, of up to 8,192 bits: 0.1 s for a handshake. Python lets us name
    # one group, and this is the one that all clients have.
    context.set_ecdh_curve("prime256v1")
    context.set_alpn_protocols(["http/1.1"])
    assert settings.tls_cert_file is not None
    try:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file, password="")
        if pems.client_ca is not None:
            context.load_verify_locations(cadata=pems.client_ca.decode("ascii", "replace"))
            context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    except (OSError, ValueError) as error:  # SSLError is an OSError
        why = error.reason if isinstance(error, ssl.SSLError) else str(error)
        raise ConfigError(f"tls_cert_file: {settings.tls_cert_file}: refused by OpenSSL: {why}") from error
    return context


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(str(name.value) for name in names)


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.client_ca)
