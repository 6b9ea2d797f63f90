"""Where the time of an answered rank goes, stage by stage."""

from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Histogram

from mfalcon.metrics.catalog import requests

Stage: TypeAlias = Literal[
    "admission", "log", "fetch", "queue", "features", "encode", "score", "merge", "rerank", "reply"
]


class StageMetrics:
    """Seconds by model and stage; the stages of a request do not overlap."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = requests.STAGE_SECONDS.made(registry)
        self._histograms: dict[tuple[str, Stage], Histogram] = {}

    def took(self, model: str, stage: Stage, seconds: float, exemplar: dict[str, str] | None = None) -> None:
        """A rank has been through a stage. exemplar: names its trace, if it is traced."""
        histogram = self._histograms.get((model, stage))
        if histogram is None:
            histogram = self._histograms[model, stage] = self._seconds.labels(model, stage)
        histogram.observe(seconds, exemplar)
