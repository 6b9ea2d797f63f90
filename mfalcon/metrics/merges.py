"""What became of requests to ensembles, and of their members in each."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import requests


class MergeMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._merges = requests.MERGES.made(registry)
        self._members = requests.MEMBERS.made(registry)

    def merged(self, ensemble: str, outcome: str) -> None:
        """A rank has ended: whole, partial or too_few."""
        self._merges.labels(ensemble, outcome).inc()

    def member(self, ensemble: str, member: str, outcome: str) -> None:
        """What a member did in it."""
        self._members.labels(ensemble, member, outcome).inc()
