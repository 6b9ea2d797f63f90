"""Alert rules and the dashboard: they ask only for what a server shows, and each alert fires when it should.

What needs no Prometheus runs everywhere: a parser reads every query, and the catalog knows its metrics, labels and
values. promtool, where it is installed, evaluates the rules.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from loadtest.bench.scrape import used
from mfalcon.metrics.alerts import ALERTS, GROUPS, RUNBOOK, Alert, Recorded
from mfalcon.metrics.catalog import METRICS
from tests.deploy.promql import grouped, selected

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules.yaml"
RECORDED = {rule.name for group in GROUPS for rule in group.rules if isinstance(rule, Recorded)}
DASHBOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
OF_PROMETHEUS = {"up": {"job", "instance"}}
OF_A_SCRAPE = {"job", "instance", "le", "frontend"}


def panels() -> Iterator[dict[str, Any]]:
    """Every panel that asks something, in closed rows too."""
    for panel in DASHBOARD["panels"]:
        yield from (one for one in (panel, *panel.get("panels", ())) if one["type"] != "row")


def written(expr: str) -> str:
    """A query of the dashboard as Prometheus gets it."""
    return expr.replace("$__rate_interval", "1m").replace('"$replica"', '".*"').replace('"$model"', '".*"')


QUERIES = {
    **{rule.name: rule.expr for group in GROUPS for rule in group.rules},
    **{
        f"{panel['id']} {panel['title']}, {target['refId']}": written(target["expr"])
        for panel in panels()
        for target in panel["targets"]
    },
    **{annotation["name"]: written(annotation["expr"]) for annotation in DASHBOARD["annotations"]["list"]},
}
LABELS = {
    **OF_PROMETHEUS,
    **{
        name: set(metric.labels)
        for metric in METRICS
        for name in (metric.series, metric.name, f"{metric.name}_sum", f"{metric.name}_count")
    },
}
VALUES = {metric.series: metric.values for metric in METRICS}


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_asks_for_what_a_server_shows(name: str) -> None:
    query = QUERIES[name]
    asked = list(selected(query))
    assert asked
    known = set(OF_A_SCRAPE)
    for one in asked:
        if one.metric in RECORDED:
            known |= {"model"}
            continue
        assert one.metric in LABELS
        known |= LABELS[one.metric]
        for label, value in one.compared:
            assert label in LABELS[one.metric] | OF_A_SCRAPE, f"{one.metric} has no label {label}"
            of_label = VALUES.get(one.metric, {}).get(label)
            assert of_label is None or value in of_label or value == ".*", f"{label} of {one.metric} is never {value}"
    assert set(grouped(query)) <= known


def test_every_metric_is_on_the_dashboard() -> None:
    """Of process_* and python_info too; a histogram by its buckets."""
    shown = {one.metric for query in QUERIES.values() for one in selected(query)}
    assert {metric.series for metric in METRICS} <= shown


def test_no_panel_lies_upon_another_or_has_a_source_of_its_own() -> None:
    everything = [one for panel in DASHBOARD["panels"] for one in (panel, *panel.get("panels", ()))]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for level in (DASHBOARD["panels"], *(panel["panels"] for panel in everything if panel.get("panels"))):
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in level)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(cells)) == len(cells)
        assert max(x for x, _ in cells) < 24
    for panel in panels():
        assert {panel["datasource"]["uid"], *(target["datasource"]["uid"] for target in panel["targets"])} == {
            "${source}"
        }
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]


def test_the_dashboard_is_found_by_what_provisions_it() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["source", "replica", "model"]


def test_what_prometheus_reads_is_what_is_defined() -> None:
    """The text is written by hand, so it is read by a parser of YAML."""
    read = yaml.safe_load(RULES.read_text())["groups"]
    assert [group["name"] for group in read] == [group.name for group in GROUPS]
    for group, defined in zip(read, GROUPS, strict=True):
        for rule, one in zip(group["rules"], defined.rules, strict=True):
            assert rule["expr"].rstrip("\n") == one.expr
            if isinstance(one, Alert):
                assert (rule["alert"], rule.get("for", "")) == (one.name, one.wait)
                assert rule["labels"] == {"severity": one.severity}
                told = {"summary": one.summary, "description": one.description, "runbook": one.runbook}
                assert rule["annotations"] == told
            else:
                assert rule == {"record": one.name, "expr": rule["expr"]}


def test_every_alert_has_a_chapter_that_says_what_to_do() -> None:
    headings = re.findall(r"^### (Mfalcon\w+)$", (ROOT / RUNBOOK).read_text(), re.MULTILINE)
    assert headings == list(dict.fromkeys(headings))
    assert set(headings) == {alert.name for alert in ALERTS}
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)


def test_every_rule_is_shown_to_work() -> None:
    expected = (DEPLOY / "prometheus/rules_test.yaml").read_text()
    families = {re.sub(r"(_rate)\d+[mh]$", r"\1", name) for name in RECORDED}
    assert [name for name in (*(alert.name for alert in ALERTS), *families) if name not in expected] == []


def promtool(*arguments: str, given: str = "") -> str:
    """What promtool says of it. Skips where it is not installed."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    done = subprocess.run(
        [program, *arguments], cwd=RULES.parent, input=given, capture_output=True, text=True, timeout=300, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def test_the_rules_do_as_their_own_tests_say() -> None:
    promtool("test", "rules", "rules_test.yaml")


def test_promtool_finds_nothing_to_mend_in_rules_and_configuration(tmp_path: Path) -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")
    # The path of the image's rules is another one here.
    config = yaml.safe_load((RULES.parent / "prometheus.yaml").read_text())
    assert config["rule_files"] == ["/etc/prometheus/rules.yaml"]
    here = tmp_path / "prometheus.yaml"
    here.write_text(yaml.safe_dump(config | {"rule_files": [str(RULES)]}))
    assert "SUCCESS" in promtool("check", "config", str(here))


def test_promtool_finds_nothing_to_mend_in_metrics() -> None:
    """Of two models that have answered everything in every way."""
    promtool("check", "metrics", given=generate_latest(used(2).registry).decode())
