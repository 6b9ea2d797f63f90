"""Alert rules and the dashboard: they ask only for what a server shows, and each alert fires when it should."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from mfalcon.metrics.server_metrics import ServerMetrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus/rules.yaml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
QUERIES = {
    **{rule["alert"]: rule["expr"] for rule in ALERTS},
    **{f"{panel['title']}, {t['refId']}": t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]},
}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
SHOWN = {
    family.name + suffix for family in ServerMetrics().registry.collect() for suffix in SUFFIXES.get(family.type, ("",))
}


@pytest.mark.parametrize("name", QUERIES)
def test_every_metric_of_a_query_is_shown_by_a_server(name: str) -> None:
    asked = set(re.findall(r"\b(?:mfalcon|process)_\w+", QUERIES[name]))
    assert asked <= SHOWN
    assert asked or "up" in QUERIES[name]


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}


def test_every_alert_is_shown_to_fire() -> None:
    expected = (DEPLOY / "prometheus/rules_test.yaml").read_text()
    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in expected] == []


def test_the_rules_do_as_their_own_tests_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    result = subprocess.run(
        [promtool, "test", "rules", "rules_test.yaml"],
        cwd=RULES.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_dashboard_is_found_by_what_provisions_it() -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${source}"}
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["source", "replica"]
