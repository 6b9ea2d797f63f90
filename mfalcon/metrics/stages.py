"""Where the time of an answered rank goes, stage by stage."""

from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Histogram

Stage: TypeAlias = Literal[
    "admission", "log", "fetch", "queue", "features", "encode", "score", "merge", "rerank", "reply"
]

_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class StageMetrics:
    """Seconds by model and stage; the stages of a request do not overlap."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "mfalcon_stage_seconds",
            "Time of answered ranks by stage.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._histograms: dict[tuple[str, Stage], Histogram] = {}

    def took(self, model: str, stage: Stage, seconds: float) -> None:
        """A rank has been through a stage."""
        histogram = self._histograms.get((model, stage))
        if histogram is None:
            histogram = self._histograms[model, stage] = self._seconds.labels(model, stage)
        histogram.observe(seconds)
