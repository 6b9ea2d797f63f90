"""All metrics of one server, by what they speak of."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric

from mfalcon.metrics.build_info import BuildInfo
from mfalcon.metrics.callers import CallerMetrics
from mfalcon.metrics.captures import CaptureMetrics
from mfalcon.metrics.catalog import process
from mfalcon.metrics.counters import CounterMetrics
from mfalcon.metrics.device import DeviceMetrics
from mfalcon.metrics.graph import GraphMetrics
from mfalcon.metrics.items import ItemMetrics
from mfalcon.metrics.line_metrics import LineMetrics
from mfalcon.metrics.logs import LogMetrics
from mfalcon.metrics.loop_lag import LoopLag
from mfalcon.metrics.merges import MergeMetrics
from mfalcon.metrics.process import count_process
from mfalcon.metrics.requests import RequestMetrics
from mfalcon.metrics.reranks import RerankMetrics
from mfalcon.metrics.span_metrics import SpanMetrics
from mfalcon.metrics.stages import StageMetrics
from mfalcon.metrics.states import StateMetrics


class Registry(CollectorRegistry):
    """A registry that leaves out the `_created` twin of every counter and histogram: nobody asks when a count began."""

    def collect(self) -> Iterator[Metric]:
        """What is registered, sampled now."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class ServerMetrics:
    """requests: what callers get. callers: what each of them used. stages: where its time goes. lines: of the access
    log. spans: of traces. states: the tiers, Redis and the log there. device: its queue and its steps. logs: an event
    log on this machine. counters: of items. items: their rows. graph: their vectors. reranks: those asked for. merges:
    of ensembles. captures: of requests. frontend_restarts, build: of the server's processes. loop_lag: of the event
    loop that asks it.
    """

    def __init__(self) -> None:
        self.registry = Registry()
        self.requests = RequestMetrics(self.registry)
        self.callers = CallerMetrics(self.registry)
        self.stages = StageMetrics(self.registry)
        self.lines = LineMetrics(self.registry)
        self.spans = SpanMetrics(self.registry)
        self.states = StateMetrics(self.registry)
        self.device = DeviceMetrics(self.registry)
        self.logs = LogMetrics(self.registry)
        self.counters = CounterMetrics(self.registry)
        self.items = ItemMetrics(self.registry)
        self.graph = GraphMetrics(self.registry)
        self.reranks = RerankMetrics(self.registry)
        self.merges = MergeMetrics(self.registry)
        self.captures = CaptureMetrics(self.registry)
        self.frontend_restarts = process.FRONTEND_RESTARTS.made(self.registry)
        self.build = BuildInfo(self.registry)
        self.loop_lag = LoopLag(self.registry)
        count_process(self.registry)
