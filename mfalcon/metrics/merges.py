"""What became of requests to ensembles, and of their members in each."""

from prometheus_client import CollectorRegistry, Counter


class MergeMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._merges = Counter(
            "mfalcon_merges",
            "Ranks of ensembles: of all members (whole), of some (partial), or of too few to be answered.",
            ["ensemble", "outcome"],
            registry=registry,
        )
        self._members = Counter(
            "mfalcon_members",
            "Members of ensembles in merges: arrived, or why they did not.",
            ["ensemble", "member", "outcome"],
            registry=registry,
        )

    def merged(self, ensemble: str, outcome: str) -> None:
        """A rank has ended: whole, partial or too_few."""
        self._merges.labels(ensemble, outcome).inc()

    def member(self, ensemble: str, member: str, outcome: str) -> None:
        """What a member did in it."""
        self._members.labels(ensemble, member, outcome).inc()
