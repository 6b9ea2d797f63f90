"""How long the server's certificate lasts, and how often it was replaced."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import certificates


class CertificateMetrics:
    """Of a server that speaks TLS; one that does not has none of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._until = certificates.TLS_CERTIFICATE_EXPIRY.made(registry)
        self._looks = certificates.TLS_CERTIFICATE_CHANGES.made(registry)

    def serves_until(self, timestamp: float) -> None:
        """The certificate that is served expires then."""
        self._until.set(timestamp)

    def looked(self, *, replaced: bool) -> None:
        """Files that have changed were taken, or refused."""
        self._looks.labels("replaced" if replaced else "refused").inc()
