"""Every metric that /metrics shows, defined once, in a file for each subject. The classes beside this folder count in
what is made of it, and `python -m mfalcon.metrics.publish` writes docs/metrics.md, the dashboard and the alert rules
from it.
"""

from typing import Final

from mfalcon.metrics.catalog import (
    callers,
    captures,
    certificates,
    counters,
    device,
    local_log,
    log,
    models,
    process,
    redis,
    requests,
    shared_states,
    states,
    written,
)
from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, HistogramDefinition, Metric

_SUBJECTS = (
    requests,
    callers,
    device,
    models,
    states,
    shared_states,
    redis,
    log,
    local_log,
    counters,
    captures,
    certificates,
    written,
    process,
)

METRICS: Final[tuple[Metric, ...]] = tuple(
    value
    for subject in _SUBJECTS
    for value in vars(subject).values()
    if isinstance(value, CounterDefinition | GaugeDefinition | HistogramDefinition)
)
"""All of them, in the order of those files: an entry there is all that it takes to add one."""
