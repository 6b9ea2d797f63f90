"""How long the server's certificate lasts, and how often it was replaced."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class CertificateMetrics:
    """Of a server that speaks TLS; one that does not has none of them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._until = Gauge(
            "mfalcon_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that is served expires, in Unix time.",
            registry=registry,
        )
        self._looks = Counter(
            "mfalcon_tls_certificate_changes",
            "Changes of the certificate's files, by what became of them: replaced, or refused as bad.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("replaced", "refused"):
            self._looks.labels(outcome)

    def serves_until(self, timestamp: float) -> None:
        """The certificate that is served expires then."""
        self._until.set(timestamp)

    def looked(self, *, replaced: bool) -> None:
        """Files that have changed were taken, or refused."""
        self._looks.labels("replaced" if replaced else "refused").inc()
