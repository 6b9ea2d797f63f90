"""Metrics as text: in Prometheus' own format, or as OpenMetrics, which has exemplars."""

from typing import Final, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

_ASKED: Final = openmetrics.CONTENT_TYPE_LATEST.partition(";")[0]


class Scrape(Protocol):
    """Shows the metrics of a server."""

    async def __call__(self, *, open_metrics: bool = False) -> bytes:
        """As text of either format."""
        ...


def text_of(collector: Collector, *, open_metrics: bool = False) -> bytes:
    """What a collector has."""
    return openmetrics.generate_latest(collector) if open_metrics else generate_latest(collector)


def wants_open_metrics(accept: str) -> bool:
    """Whether a client takes OpenMetrics, by what it says that it accepts."""
    return _ASKED in accept


def content_type(*, open_metrics: bool) -> str:
    """Of the text."""
    return openmetrics.CONTENT_TYPE_LATEST if open_metrics else CONTENT_TYPE_LATEST
