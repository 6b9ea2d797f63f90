"""deploy/prometheus/rules.yaml, and the same rules for the Prometheus operator."""

import json
from collections.abc import Iterator

from mfalcon.metrics.alerts import GROUPS, Alert, Rule

HEAD = """\
# Alerts and recording rules on a server's own metrics. `make metrics` writes this file from mfalcon/metrics/alerts.py:
# do not edit it. docs/operations.md says what to do when an alert fires, docs/metrics.md what each metric tells. The
# rules need a scrape job called mfalcon and fit intervals of up to 30 s. A counter that begins with its first failure
# has no increase yet: hence "unless ... offset" where the first failure counts. `promtool test rules rules_test.yaml`
# shows when each alert fires.
"""
OPERATOR_HEAD = """\
# deploy/prometheus/rules.yaml for the Prometheus operator; `make metrics` writes both.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: mfalcon
spec:
"""


def rules() -> str:
    """The file that Prometheus reads. Quoted strings are those of JSON, which YAML reads too."""
    return HEAD + "".join(f"{line}\n" for line in _groups())


def operator_rules() -> str:
    """The manifest that the operator reads."""
    return OPERATOR_HEAD + "".join(f"  {line}\n" for line in _groups())


def _groups() -> Iterator[str]:
    yield "groups:"
    for group in GROUPS:
        yield f"  - name: {group.name}"
        yield "    rules:"
        for rule in group.rules:
            yield from (f"      {line}" for line in _rule(rule))


def _rule(rule: Rule) -> Iterator[str]:
    if isinstance(rule, Alert):
        yield f"- alert: {rule.name}"
    else:
        yield f"- record: {rule.name}"
    yield "  expr: |"
    yield from (f"    {line}" for line in rule.expr.splitlines())
    if not isinstance(rule, Alert):
        return
    if rule.wait:
        yield f"  for: {rule.wait}"
    yield f"  labels: {{severity: {rule.severity}}}"
    yield "  annotations:"
    yield f"    summary: {json.dumps(rule.summary)}"
    yield f"    description: {json.dumps(rule.description)}"
    yield f"    runbook: {rule.runbook}"
