"""What a front-end counts, in a process of its own."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.line_metrics import LineMetrics
from mfalcon.metrics.loop_lag import LoopLag
from mfalcon.metrics.requests import RequestMetrics
from mfalcon.metrics.span_metrics import SpanMetrics
from mfalcon.metrics.stages import StageMetrics


class FrontMetrics:
    """requests: what callers get. stages: where its time goes, as far as a front-end sees it. lines: of its access
    log. spans: of traces. loop_lag: of its loop.
    """

    def __init__(self, number: int) -> None:
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics(self.registry)
        self.stages = StageMetrics(self.registry)
        self.lines = LineMetrics(self.registry)
        self.spans = SpanMetrics(self.registry)
        self.loop_lag = LoopLag(self.registry, str(number))
