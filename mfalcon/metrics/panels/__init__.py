"""What somebody on call looks at first, row by row, in PromQL.

`@all` stands for the chosen replicas, `@model` for the chosen models of them, `@rate` for Grafana's interval of a rate.
"""

from typing import Final

from mfalcon.metrics.panels.callers import GLANCE, RATES, TIMES
from mfalcon.metrics.panels.machine import DEVICE, MODELS, PROCESSES
from mfalcon.metrics.panels.state import HISTORIES, REDIS, STATES

ROWS: Final = (GLANCE, RATES, TIMES, DEVICE, STATES, HISTORIES, REDIS, MODELS, PROCESSES)
