"""deploy/grafana/dashboard.json: the rows of panels.py, and below them one closed row for each section of the catalog,
which shows every metric of it. A new metric is there without a word.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from mfalcon.metrics.catalog import METRICS
from mfalcon.metrics.definition import CounterDefinition, HistogramDefinition, Metric
from mfalcon.metrics.panels import ROWS
from mfalcon.metrics.panels.panel import Panel, Query, Row

Json = dict[str, Any]

ALL: Final = 'job="mfalcon",instance=~"$replica"'
MODEL: Final = f'{ALL},model=~"$model"'
RATE: Final = "$__rate_interval"
SOURCE: Final[Json] = {"type": "prometheus", "uid": "${source}"}
UNITS: Final = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit"}
WIDTH: Final = 24


def dashboard(metrics: Sequence[Metric] = METRICS) -> str:
    """The whole of it, as Grafana imports it."""
    panels = list(_panels(metrics))
    for number, panel in enumerate(_flat(panels), 1):
        panel["id"] = number
    described = {
        "uid": "mfalcon",
        "title": "mfalcon",
        "description": "Written by `make metrics` from mfalcon/metrics: do not edit it.",
        "tags": ["mfalcon"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": [_reloads()]},
        "templating": {"list": _variables()},
        "panels": panels,
    }
    return json.dumps(described, indent=1) + "\n"


def _flat(panels: Sequence[Json]) -> Iterator[Json]:
    for panel in panels:
        yield panel
        yield from panel.get("panels", ())


def _variables() -> list[Json]:
    return [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}},
        _variable("replica", "Replica", 'label_values(mfalcon_queue_jobs{job="mfalcon"}, instance)'),
        _variable("model", "Model", 'label_values(mfalcon_backend{job="mfalcon"}, model)'),
    ]


def _variable(name: str, label: str, query: str) -> Json:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _reloads() -> Json:
    """A line at each swap of a checkpoint."""
    return {
        "name": "Reloads",
        "enable": True,
        "iconColor": "purple",
        "datasource": SOURCE,
        "expr": f'increase(mfalcon_reloads_total{{{MODEL},result="swapped"}}[1m]) > 0',
        "titleFormat": "{{model}} was reloaded",
        "textFormat": "{{instance}}",
        "step": "15s",
    }


def _panels(metrics: Sequence[Metric]) -> Iterator[Json]:
    top = 0
    for row in ROWS:
        yield _heading(row.title, top)
        panels, top = _placed(row, top + 1)
        yield from panels
    for section in dict.fromkeys(metric.section for metric in metrics):
        inside = Row(
            title=f"All metrics: {section.title}",
            panels=tuple(detail(metric) for metric in metrics if metric.section == section),
        )
        panels, _ = _placed(inside, top + 1)
        yield _heading(inside.title, top) | {"collapsed": True, "panels": panels}
        top += 1


def _heading(title: str, top: int) -> Json:
    return {
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": top},
        "panels": [],
    }


def _placed(row: Row, top: int) -> tuple[list[Json], int]:
    """The panels of a row beside and below each other, and where the next row begins."""
    width, height = (4, 4) if row.are_numbers else (12, 8) if len(row.panels) % 3 else (8, 8)
    placed: list[Json] = []
    for number, panel in enumerate(row.panels):
        line, column = divmod(number * width, WIDTH)
        at = {"h": height, "w": width, "x": column, "y": top + line * height}
        placed.append((_number(panel) if row.are_numbers else _chart(panel)) | {"gridPos": at})
    lines = -(-len(row.panels) * width // WIDTH)
    return placed, top + lines * height


def _common(panel: Panel) -> Json:
    return {
        "title": panel.title,
        "description": panel.tells,
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": SOURCE,
                "expr": _filled(query.expr),
                "legendFormat": query.legend,
            }
            for number, query in enumerate(panel.queries)
        ],
    }


def _filled(expr: str) -> str:
    return expr.replace("@all", ALL).replace("@model", MODEL).replace("@rate", RATE)


def _chart(panel: Panel) -> Json:
    custom: Json = {"fillOpacity": 30 if panel.stacked else 8, "showPoints": "never", "lineWidth": 1}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal"}
    return _common(panel) | {
        "type": "timeseries",
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _number(panel: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    return _common(panel) | {
        "type": "stat",
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "area",
        },
    }


def detail(metric: Metric) -> Panel:
    """A metric by all of its labels: the rate of a counter, the quantiles of a histogram, the value of a gauge."""
    unit = UNITS.get(metric.unit, "short")
    selected = "{@model}" if "model" in metric.labels else "{@all}"
    labels = ", ".join(metric.labels)
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels)
    queries: tuple[Query, ...]
    if isinstance(metric, CounterDefinition):
        by = f" by ({labels})" if labels else ""
        queries = (Query(f"sum{by} (rate({metric.series}{selected}[@rate]))", legend or "a second"),)
        # Bytes and seconds a second have units of their own.
        unit = {"bytes": "Bps", "s": "short"}.get(unit, unit)
    elif isinstance(metric, HistogramDefinition):
        of = f"sum by ({', '.join(('le', *metric.labels))}) (rate({metric.series}{selected}[@rate]))"
        queries = tuple(
            Query(f"histogram_quantile({q:g}, {of})", f"p{round(100 * q)} {legend}".rstrip()) for q in (0.5, 0.99)
        )
    else:
        queries = (Query(f"{metric.series}{selected}", f"{{{{instance}}}} {legend}".rstrip()),)
    return Panel(title=metric.name, unit=unit, queries=queries, tells=metric.help)
