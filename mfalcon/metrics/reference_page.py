"""docs/metrics.md: every metric of the catalog, for whoever reads a dashboard."""

from collections.abc import Iterator, Sequence

from mfalcon.metrics.catalog import METRICS
from mfalcon.metrics.definition import Metric, Section

HEAD = """\
# Metrics

`GET /metrics` shows these in Prometheus' text format. `python -m mfalcon.metrics.publish` writes this page from
`mfalcon/metrics/catalog/`, where each metric is defined; do not edit it. A metric that needs a
setting stays as it is without. Of a histogram there are `_bucket`, `_sum` and `_count`.

What to do when an alert fires is in [operations.md](operations.md), "Alerts".

Labels have few values: models that are served, verbs, codes, stages, reasons, callers that the operator named; never a
user, an item or what a caller made up. One model that has answered everything in every way has 590 series, twenty have
9,368; a scrape takes 4 and 66 ms of processor time, on a thread beside the event loop (`python -m
loadtest.bench.scrape`; medians of 20, from 3.7 and 63 to 4.3 and 87 ms, on an AMD EPYC that had other work).
"""


def page(metrics: Sequence[Metric] = METRICS) -> str:
    """The whole page, in Markdown."""
    return "\n".join([HEAD, *_chapters(metrics)])


def _chapters(metrics: Sequence[Metric]) -> Iterator[str]:
    for section in dict.fromkeys(metric.section for metric in metrics):
        yield f"## {section.title}"
        yield from _table(section, metrics)
        yield ""


def _table(section: Section, metrics: Sequence[Metric]) -> Iterator[str]:
    yield "| metric | kind | what it tells | setting |"
    yield "|---|---|---|---|"
    for metric in metrics:
        if metric.section == section:
            yield f"| `{shown(metric)}` | {metric.kind} | {_told(metric)} | {_setting(metric)} |"


def shown(metric: Metric) -> str:
    """Its name as a scrape has it, with its labels."""
    labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
    name = metric.series if metric.kind == "counter" else metric.name
    return name + labels


def _told(metric: Metric) -> str:
    return f"{metric.help} {metric.tells}".rstrip()


def _setting(metric: Metric) -> str:
    return f"`{metric.needs}`" if metric.needs else ""
