"""Four replicas of a plan, simulated: whether its shares and cores hold, and what a failure and a deploy do to it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from loadtest.scale.acts import Visits, returning
from loadtest.scale.costs import Costs
from loadtest.scale.fleet import FleetOptions
from loadtest.scale.plan import Demand, Plan, Site
from loadtest.scale.scenario import Phase, named, run
from mfalcon.errors import ConfigError

NUM_REPLICAS = 4
SCENARIOS = {"steady": 1.5, "steady, bound 1.25": 1.25, "steady, no bound": math.inf, "kill": 1.5, "deploy": 1.5}
"""And the most requests under way at a replica, as a multiple of its share: deploy/envoy's, where nothing is said."""
SECONDS = 1_800.0


@dataclass(frozen=True, slots=True)
class SimulatedPlan:
    """phases: of each scenario. planned: the plan's shares by tier and its part of a core that is busy."""

    scenario: str
    users: int
    planned: dict[str, float]
    planned_busy: float
    busy: float
    phases: tuple[Phase, ...]


def simulate_all(costs: Costs, progress: Callable[[str], None]) -> tuple[SimulatedPlan, ...]:
    """As many users as four cores are planned for."""
    site = Site(state_ttl_s=600.0)
    plan = Plan(costs, Demand(users=1e6), site)
    users = round(1e6 * NUM_REPLICAS / plan.cores)
    plan = Plan(costs, Demand(users=users), site)
    found = []
    for name, bound in SCENARIOS.items():
        fleet = FleetOptions(NUM_REPLICAS, site.pool_bytes, plan.state_bytes, bound=bound)
        progress(f"{name}: {users:,} users, {SECONDS:,.0f} s")
        demand = plan.demand
        acts = returning(users, demand.visits_a_day * demand.peak, SECONDS, demand.events, demand.candidates)
        scenario = replace(named(name.partition(",")[0], fleet, Visits(demand.rate, SECONDS)), restart_s=20.0)
        result = run(scenario, costs, (acts, np.full(users, demand.history)))
        planned = site.utilisation
        found.append(SimulatedPlan(name, users, plan.shares, planned, result.utilisation, tuple(result.phases)))
    return tuple(found)


_ADAPTER = TypeAdapter(tuple[SimulatedPlan, ...])


def as_json(simulated: tuple[SimulatedPlan, ...]) -> str:
    """What `load_simulated` reads."""
    return _ADAPTER.dump_json(simulated, indent=2).decode() + "\n"


def load_simulated(path: Path) -> tuple[SimulatedPlan, ...]:
    """Raises ConfigError for a file that is none."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: no simulated plans: {error}") from None
