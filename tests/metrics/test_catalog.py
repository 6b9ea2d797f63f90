"""One module defines every metric: what a server shows is what it says, and what is made of it is committed."""

import re

import pytest
from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import METRICS
from mfalcon.metrics.certificates import CertificateMetrics
from mfalcon.metrics.definition import CounterDefinition, Metric, Section
from mfalcon.metrics.front_metrics import FrontMetrics
from mfalcon.metrics.process import count_process
from mfalcon.metrics.publish import ROOT, files
from mfalcon.metrics.reference_page import page
from mfalcon.metrics.server_metrics import ServerMetrics

NAMES = [metric.name for metric in METRICS]
BY_LIBRARY = {"python_info"}
"""What the client library shows of a process, which no class of ours counts in a front-end."""


def described(registry: CollectorRegistry) -> dict[str, tuple[str, str]]:
    """Kind and help of each family that a registry shows."""
    return {family.name: (family.type, family.documentation) for family in registry.collect()}


def test_a_server_shows_what_is_defined_and_nothing_else() -> None:
    registry = ServerMetrics().registry
    CertificateMetrics(registry)  # of a server that speaks TLS
    assert described(registry) == {metric.name: (metric.kind, metric.help) for metric in METRICS}


def test_a_front_end_shows_what_is_defined_for_it() -> None:
    registry = FrontMetrics(0).registry
    count_process(registry)  # the engine's process asks the system for these
    assert described(registry).keys() - BY_LIBRARY == {metric.name for metric in METRICS if metric.frontends}


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_it_keeps_to_prometheus_conventions_and_is_a_sentence(metric: Metric) -> None:
    assert NAMES.count(metric.name) == 1
    assert re.fullmatch(r"[a-z][a-z0-9_]+", metric.name)
    assert not metric.name.endswith(
        ("_ms", "_us", "_milliseconds", "_kb", "_mb", "_percent", "_total", "_count", "_sum")
    )
    assert metric.name == "python_info" or re.fullmatch(r"[A-Z0-9].*\.", metric.help)  # the library writes that one
    assert not metric.tells or metric.tells.endswith(".")
    assert metric.values.keys() <= set(metric.labels)


@pytest.mark.parametrize("path", files())
def test_what_is_made_of_it_is_committed(path: str) -> None:
    assert (ROOT / path).read_text() == files()[path], "make metrics"


def test_one_more_entry_is_one_more_row() -> None:
    section = Section(title="Experiments")
    metric = CounterDefinition(
        name="mfalcon_trials",
        help="Trials.",
        section=section,
        labels=("how",),
        values={"how": ("a", "b")},
        needs="--trials",
        tells="Stop when it grows.",
    )
    text = page((*METRICS, metric))
    assert text.endswith(
        "## Experiments\n| metric | kind | what it tells | setting |\n|---|---|---|---|\n"
        "| `mfalcon_trials_total{how}` | counter | Trials. Stop when it grows. | `--trials` |\n"
    )


def test_known_values_of_a_label_are_there_before_the_first_so_that_an_alert_sees_it() -> None:
    registry = ServerMetrics().registry
    CertificateMetrics(registry)
    shown = {
        (sample.name, value): sample.value
        for family in registry.collect()
        for sample in family.samples
        for value in sample.labels.values()
    }
    alone = [m for m in METRICS if isinstance(m, CounterDefinition) and len(m.labels) == 1 and m.values]
    assert len(alone) > 8
    for metric in alone:
        for value in metric.values[metric.labels[0]]:
            assert shown[metric.series, value] == 0
