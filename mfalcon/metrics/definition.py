"""What is known of a metric before anybody counts: its name, its labels, and what an operator reads of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Metrics that are read together: a chapter of docs/metrics.md, and a row of the dashboard."""

    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A metric. name: as Prometheus shows the family, without the _total of a counter. help: a sentence, which
    /metrics shows. tells: sentences of Markdown with what an operator should know beside that, and what to do when it
    moves. labels: their names. values: all values of those labels that have a fixed set. needs: the setting
    without which it stays as it is. frontends: whether each front-end counts it, in a process of its own.
    """

    name: str
    help: str
    section: Section
    tells: str = ""
    labels: tuple[str, ...] = ()
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs: str = ""
    frontends: bool = False

    kind: ClassVar[str]

    @property
    def series(self) -> str:
        """The name by which it is asked for: of a histogram the one of its buckets."""
        return self.name

    @property
    def unit(self) -> str:
        """The base unit that its name ends in, "" for a number of things."""
        ending = self.name.rpartition("_")[2]
        return ending if ending in ("seconds", "bytes", "ratio") else ""


def _show_all(metric: MetricWrapperBase, definition: Definition) -> None:
    """A series that begins with its first event has no increase yet that an alert could see."""
    if len(definition.labels) == 1:
        for value in definition.values.get(definition.labels[0], ()):
            metric.labels(value)


class CounterDefinition(Definition):
    """Of what only grows."""

    __slots__ = ()
    kind = "counter"

    @property
    def series(self) -> str:
        """Counters end in _total."""
        return f"{self.name}_total"

    def made(self, registry: CollectorRegistry) -> Counter:
        """The counter itself, with every child of a single label whose values are known."""
        counter = Counter(self.name, self.help, self.labels, registry=registry)
        _show_all(counter, self)
        return counter


class GaugeDefinition(Definition):
    """Of what goes up and down."""

    __slots__ = ()
    kind = "gauge"

    def made(self, registry: CollectorRegistry) -> Gauge:
        """The gauge itself."""
        return Gauge(self.name, self.help, self.labels, registry=registry)


@dataclass(frozen=True, slots=True, kw_only=True)
class HistogramDefinition(Definition):
    """Of what is measured. buckets: their upper bounds, in the unit of the name."""

    buckets: tuple[float, ...]

    kind = "histogram"

    @property
    def series(self) -> str:
        """A histogram is its buckets."""
        return f"{self.name}_bucket"

    def made(self, registry: CollectorRegistry) -> Histogram:
        """The histogram itself."""
        return Histogram(self.name, self.help, self.labels, registry=registry, buckets=self.buckets)


CALL_SECONDS: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Buckets of what a store takes for a call."""

Metric: TypeAlias = CounterDefinition | GaugeDefinition | HistogramDefinition
