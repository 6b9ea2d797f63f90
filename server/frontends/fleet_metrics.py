"""Metrics of all processes of a server as one.

What a front-end counts lives in files that are named after its number and mapped into its memory: whatever ends it, its
successor counts on from there, so no counter ever goes back. The engine's process reads them all when it is asked.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from mfalcon.metrics.exposition import text_of
from mfalcon.metrics.process import ThreadCollector


def count_in_files(directory: str, number: int) -> None:
    """Have this process, a front-end, count in files. To be called before there is any counter."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    values.ValueClass = values.MultiProcessValue(lambda: number)


class FleetMetrics(Collector):
    """What the engine's process counts itself, what is in files, and what the system knows of the other processes."""

    def __init__(self, registry: CollectorRegistry, directory: str, pids: Callable[[], Mapping[int, int]]) -> None:
        """registry: of the engine's process. directory: of the files. pids: of the front-ends, by number."""
        self._registry = registry
        self._files = MultiProcessCollector(None, directory)
        self._pids = pids

    def text(self, *, open_metrics: bool = False) -> bytes:
        """Of either format. What front-ends count has no exemplars."""
        return text_of(self, open_metrics=open_metrics)

    def collect(self) -> Iterator[Metric]:
        """Each family once, with the samples of all."""
        families: dict[str, Metric] = {}
        for family in self._all():
            known = families.setdefault(family.name, family)
            if known is not family:
                known.samples = _summed([*known.samples, *family.samples])
        yield from families.values()

    def _all(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from self._files.collect()
        for number, pid in self._pids().items():
            asked = partial(int, pid)
            for collector in (ProcessCollector(pid=asked, registry=None), ThreadCollector(asked)):
                yield from _labelled(collector.collect(), str(number))


def _summed(samples: Iterable[Sample]) -> list[Sample]:
    """Each series once: what several processes have counted of it is one number."""
    series: dict[tuple[str, frozenset[tuple[str, str]]], Sample] = {}
    for sample in samples:
        key = sample.name, frozenset(sample.labels.items())
        known = series.get(key)
        series[key] = sample if known is None else known._replace(value=known.value + sample.value)
    return list(series.values())


def _labelled(families: Iterable[Metric], number: str) -> Iterator[Metric]:
    for family in families:
        family.samples = [sample._replace(labels={"frontend": number}) for sample in family.samples]
        yield family
