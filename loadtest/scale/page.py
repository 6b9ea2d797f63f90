"""The tables of docs/scaling.md: each stands between two comments, and is made of measured costs by `plan.py`."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from loadtest.report.table import Part, Table, as_markdown
from loadtest.scale.check import check_page, load_check
from loadtest.scale.costs import Costs, at, load_costs
from loadtest.scale.plan import Demand, Plan, Site, even_bandwidth, even_tokens
from loadtest.scale.scenario import phase_row
from loadtest.scale.simulated import NUM_REPLICAS, SECONDS, SimulatedPlan, load_simulated
from mfalcon.errors import ConfigError

USERS = (1e6, 1e8, 1e9)
HISTORIES = (100, 1_000, 10_000)
CANDIDATES = (100, 500, 2_000, 10_000)
TTLS_S = (0.0, 60.0, 600.0, 3_600.0, 86_400.0)
SITE = Site(state_ttl_s=600.0)
MIDDLE = Demand(users=1e8)
_LENGTHS = (64, 256, 1_024, 4_096, 10_000)
_NETWORKS = {"1 Gb/s": 1e9 / 8, "10 Gb/s": 10e9 / 8, "25 Gb/s": 25e9 / 8, "100 Gb/s": 100e9 / 8}
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def rewritten(text: str, costs: Path, check: Path, simulated: Path) -> str:
    """The page with its tables made again. Raises ConfigError for a table that nobody knows."""
    known = load_costs(costs)
    tables = {
        "costs": lambda: _costs(known),
        "assumptions": lambda: _assumptions(known),
        "users": lambda: _plans(_of_users(known), "users", lambda plan: _count(plan.demand.users)),
        "candidates": lambda: _plans(_of_candidates(known), "m", lambda plan: f"{plan.demand.candidates:,}"),
        "ttl": lambda: _plans(_of_ttls(known), "states kept", lambda plan: _time(plan.site.state_ttl_s)),
        "break-even": lambda: _break_even(known),
        "first": lambda: _first(known),
        "check": lambda: check_page(load_check(check)),
        "simulated": lambda: _simulated(load_simulated(simulated)),
    }

    def made(match: "re.Match[str]") -> str:
        if match[2] not in tables:
            raise ConfigError(f"table: got {match[2]!r}, must be one of {', '.join(tables)}")
        return f"{match[1]}\n{as_markdown(tables[match[2]]())}\n{match[3]}"

    return _BLOCK.sub(made, text)


def _costs(costs: Costs) -> Iterator[Part]:
    yield f"{costs.model} on one core of {costs.machine}, commit {costs.commit}, CPU time beside a busy neighbour:"
    micro = 1e6
    rows = [
        ("a rank, whatever it asks", f"{costs.host_s * micro:,.0f} us"),
        *((f"scoring a candidate against {n:,} events", f"{at(costs.candidate, n) * micro:,.1f} us") for n in _LENGTHS),
        *((f"encoding {n:,} events", f"{costs.encode_s(0, n) * 1e3:,.1f} ms") for n in _LENGTHS),
        ("appending 5 events to a state of 1,000", f"{costs.encode_s(1_000, 5) * 1e3:,.1f} ms"),
        ("an AppendEvents", f"{costs.append_s * micro:,.0f} us and {costs.append_event_s * micro:,.1f} us an event"),
        ("a log in Redis", f"{costs.log_s * micro:,.0f} us a rank, {costs.append_log_s * micro:,.0f} us an append"),
        ("fetching a state", f"{costs.fetch_s * micro:,.0f} us and {costs.fetch_byte_s * 1e9:,.2f} us a KB"),
        ("writing a state", f"{costs.store_s * micro:,.0f} us and {costs.store_byte_s * 1e9:,.2f} us a KB"),
        ("Redis itself", f"{costs.redis_s * micro:,.0f} us a call and {costs.redis_byte_s * 1e9:,.2f} us a KB"),
        (
            "an event of a state",
            f"{costs.page_bytes / costs.page_tokens:,.0f} bytes, in Redis {costs.redis_bytes(1):,}",
        ),
    ]
    yield Table("", ("part", "cost"), rows)


def _assumptions(costs: Costs) -> Iterator[Part]:
    site, demand = SITE, MIDDLE
    plan = Plan(costs, demand, site)
    yield Table(
        "",
        ("assumption", "value"),
        [
            ("visits of a user", f"{demand.visits_a_day:g} a day, in bursts of 4 (`loadtest/load/visit_times.py`)"),
            ("peak over the mean", f"{demand.peak:g}"),
            ("a visit", f"an append of {demand.events} events and a rank of {demand.candidates} candidates"),
            ("history", f"{demand.history:,} events where nothing else is said"),
            ("a machine", f"{site.cores} cores, {site.pool_bytes / 2**30:g} GiB of pool a core, 25 Gb/s"),
            ("cores busy at peak", f"{site.utilisation:.0%}"),
            ("a state in Redis", f"lives {_time(site.state_ttl_s)} after its last use; nodes of 64 GiB"),
            ("so a visit costs", f"{plan.visit_s * 1e3:,.1f} ms of a core on average"),
        ],
    )


def _of_users(costs: Costs) -> Iterator[Plan]:
    for users in USERS:
        for history in HISTORIES:
            yield Plan(costs, replace(MIDDLE, users=users, history=history), SITE)


def _of_candidates(costs: Costs) -> Iterator[Plan]:
    for candidates in CANDIDATES:
        yield Plan(costs, replace(MIDDLE, candidates=candidates), SITE)


def _of_ttls(costs: Costs) -> Iterator[Plan]:
    for ttl_s in TTLS_S:
        yield Plan(costs, MIDDLE, replace(SITE, state_ttl_s=ttl_s))


def _plans(plans: Iterable[Plan], name: str, of: Callable[[Plan], str]) -> Iterator[Part]:
    columns = (
        *(name, "history", "ranks/s", "host", "Redis", "none", "ms a visit", "machines", "without states", "ratio"),
        *("Redis: logs", "states", "read GB/s", "written GB/s"),
    )
    rows = []
    for plan in plans:
        shares = (f"{share:.0%}" for share in plan.shares.values())
        bare = max(2, -(-plan.bare_cores // plan.site.cores))
        rows.append(
            (
                *(of(plan), f"{plan.demand.history:,}", f"{plan.demand.rate:,.0f}", *shares),
                *(f"{plan.visit_s * 1e3:,.1f}", f"{plan.machines:,}", f"{bare:,.0f}", f"{plan.ratio:.1f}x"),
                *(_bytes(plan.log_bytes), _bytes(plan.state_bytes)),
                *(f"{plan.read_bytes / 1e9:,.1f}", f"{plan.written_bytes / 1e9:,.1f}"),
            )
        )
    yield Table("", columns, rows)


def _break_even(costs: Costs) -> Iterator[Part]:
    columns = ("events", "bytes", "encode ms", "fetch, CPU ms", "fetching pays above, of network a core")
    rows = []
    for n in _LENGTHS:
        even = even_bandwidth(costs, n)
        limit = "never" if even is None else f"{even / 1e9:,.3f} GB/s"
        of = f"{costs.encode_s(0, n) * 1e3:,.1f}", f"{costs.fetch_cpu_s(n) * 1e3:,.2f}"
        rows.append((f"{n:,}", _bytes(costs.redis_bytes(n)), *of, limit))
    yield Table("", columns, rows)
    shortest: list[tuple[str, ...]] = []
    for name, bandwidth in _NETWORKS.items():
        alone, shared = even_tokens(costs, bandwidth), even_tokens(costs, bandwidth / SITE.cores)
        shortest.append((name, *("none" if tokens is None else f"{tokens:,}" for tokens in (alone, shared))))
    of_network = ("network of a machine", "events, one core has it", f"events, {SITE.cores} cores share it")
    yield Table("The shortest history that is worth fetching:", of_network, shortest)


def _first(costs: Costs) -> Iterator[Part]:
    columns = ("users", "history", "machines", "network of a machine", "Redis nodes by memory", "network", "thread")
    rows = []
    for plan in _of_users(costs):
        nodes = plan.redis_nodes
        most = max(nodes, key=lambda name: nodes[name])
        cells = (f"**{count:,.1f}**" if name == most else f"{count:,.1f}" for name, count in nodes.items())
        of = _count(plan.demand.users), f"{plan.demand.history:,}", f"{plan.machines:,}", f"{plan.network_share:.0%}"
        rows.append((*of, *cells))
    yield Table("", columns, rows)


def _simulated(simulated: Iterable[SimulatedPlan]) -> Iterator[Part]:
    columns = (
        *("scenario", "phase", "answers/s", "host", "Redis", "none", "refused", "late", "failed", "retried", "moved"),
        *("p50 ms", "p99 ms"),
    )
    rows, busy = list[tuple[str, ...]](), list[str]()
    for one in simulated:
        if not rows:
            planned = (f"{share:.1%}" for share in one.planned.values())
            rows.append(("planned", "", "-", *planned, *("-",) * 7))
        rows += [(one.scenario, *phase_row(phase)) for phase in one.phases]
        busy.append(f"{one.scenario} {one.busy:.0%}")
        users, planned_busy = one.users, one.planned_busy
    yield f"{NUM_REPLICAS} replicas, {users:,} users, {SECONDS:,.0f} s:"
    yield Table("", columns, rows)
    yield f"Cores busy: planned {planned_busy:.0%}, simulated {', '.join(busy)}."


def _bytes(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.1f} KB"


def _count(users: float) -> str:
    return f"{users / 1e9:g}B" if users >= 1e9 else f"{users / 1e6:g}M"


def _time(seconds: float) -> str:
    for unit, size in (("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s" if seconds else "not"
