"""Certificates."""

from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, Section

SECTION = Section(title="Certificates")

TLS_CERTIFICATE_EXPIRY = GaugeDefinition(
    name="mfalcon_tls_certificate_expiry_timestamp_seconds",
    help="When the certificate that is served expires, in Unix time.",
    section=SECTION,
    needs="--tls-cert-file",
)
TLS_CERTIFICATE_CHANGES = CounterDefinition(
    name="mfalcon_tls_certificate_changes",
    help="Changes of the certificate's files, by what became of them: replaced, or refused as bad.",
    section=SECTION,
    labels=("outcome",),
    values={"outcome": ("replaced", "refused")},
    needs="--tls-cert-file",
    tells="After `refused` the certificate of before is served on; the log says what is wrong with the new one.",
)
