"""What somebody on call looks at first, row by row, in PromQL.

`@all` stands for the chosen replicas, `@model` for the chosen models of them, `@rate` for Grafana's interval of a rate.
"""

from dataclasses import dataclass
from typing import Final

from mfalcon.metrics.alerts import FAILED


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and how Grafana names what it gives."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """title, tells: what it shows, and how to read it. unit: one of Grafana's. stacked: areas that add up. red_from:
    from where on a number is bad; None if it never is.
    """

    title: str
    unit: str
    queries: tuple[Query, ...]
    tells: str = ""
    stacked: bool = False
    red_from: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """are_numbers: the last values as large figures, six beside each other, and no charts."""

    title: str
    panels: tuple[Panel, ...]
    are_numbers: bool = False


def _quantiles(metric: str, by: str, where: str, legend: str, quantiles: tuple[float, ...]) -> tuple[Query, ...]:
    sums = f"sum by (le{', ' + by if by else ''})"
    return tuple(
        Query(
            f"histogram_quantile({q:g}, {sums} (rate({metric}_bucket{{{where}}}[@rate])))",
            f"p{round(100 * q)}{' ' + legend if legend else ''}",
        )
        for q in quantiles
    )


_HITS = (
    'sum(rate(mfalcon_state_lookups_total{@model,source!="none"}[@rate]))'
    " / sum(rate(mfalcon_state_lookups_total{@model}[@rate]))"
)

GLANCE = Row(
    title="At a glance",
    are_numbers=True,
    panels=(
        Panel(
            title="Replicas down",
            unit="none",
            queries=(Query("count(up{@all} == 0) or vector(0)", ""),),
            tells="Replicas that cannot be scraped.",
            red_from=1,
        ),
        Panel(
            title="Goodput",
            unit="reqps",
            queries=(Query('sum(rate(mfalcon_requests_total{@model,verb="rank",code=~"OK|200"}[@rate]))', ""),),
            tells="Ranks a second that were answered before their deadlines.",
        ),
        Panel(
            title="Failed requests",
            unit="percentunit",
            queries=(
                Query(
                    f'sum(rate(mfalcon_requests_total{{@model,code=~"{FAILED}"}}[@rate]))'
                    " / sum(rate(mfalcon_requests_total{@model}[@rate])) or vector(0)",
                    "",
                ),
            ),
            tells="The share that was refused, late, unavailable or a defect. What callers did wrong does not count.",
            red_from=0.001,
        ),
        Panel(
            title="p99 of ranks",
            unit="s",
            queries=_quantiles("mfalcon_request_seconds", "", '@model,verb="rank"', "", (0.99,)),
            red_from=0.1,
        ),
        Panel(
            title="Queue",
            unit="s",
            queries=(Query("max(mfalcon_queue_seconds{@all})", ""),),
            tells="Work that waits at the busiest replica.",
            red_from=0.05,
        ),
        Panel(title="States found", unit="percentunit", queries=(Query(_HITS, ""),), tells="In any tier."),
    ),
)
RATES = Row(
    title="Rates and errors",
    panels=(
        Panel(
            title="Goodput",
            unit="reqps",
            stacked=True,
            queries=(
                Query(
                    'sum by (model) (rate(mfalcon_requests_total{@model,verb="rank",code=~"OK|200"}[@rate]))',
                    "{{model}}",
                ),
            ),
            tells="Ranks a second that were answered before their deadlines.",
        ),
        Panel(
            title="Requests by verb",
            unit="reqps",
            stacked=True,
            queries=(
                Query(
                    "sum by (verb, transport) (rate(mfalcon_requests_total{@model}[@rate]))", "{{verb}} {{transport}}"
                ),
            ),
        ),
        Panel(
            title="Requests that were not answered well, by code",
            unit="reqps",
            stacked=True,
            queries=(Query('sum by (code) (rate(mfalcon_requests_total{@model,code!~"OK|200"}[@rate]))', "{{code}}"),),
            tells="Empty while all is well. 4xx and INVALID_ARGUMENT are the callers'.",
        ),
        Panel(
            title="Refused, late, abandoned",
            unit="reqps",
            stacked=True,
            queries=(Query("sum by (reason) (rate(mfalcon_unanswered_total{@model}[@rate]))", "{{reason}}"),),
            tells="Ranks and prefills that the engine did not answer.",
        ),
        Panel(
            title="Candidates scored",
            unit="short",
            stacked=True,
            queries=(
                Query("sum by (model) (rate(mfalcon_scored_candidates_total{@model}[@rate]))", "{{model}} a second"),
            ),
        ),
        Panel(
            title="Partial answers, other replicas' users",
            unit="reqps",
            queries=(
                Query("sum by (model) (rate(mfalcon_partial_total{@model}[@rate]))", "partial {{model}}"),
                Query('sum(rate(mfalcon_affinity_mismatch_total{@all,key="wrong"}[@rate]))', "wrong affinity key"),
            ),
        ),
    ),
)
TIMES = Row(
    title="Times",
    panels=(
        Panel(
            title="Time of answered ranks",
            unit="s",
            queries=(
                *_quantiles("mfalcon_request_seconds", "", '@model,verb="rank"', "", (0.5, 0.95, 0.99)),
                *_quantiles("mfalcon_first_part_seconds", "", "@model", "first part of a stream", (0.5, 0.99)),
            ),
        ),
        Panel(
            title="Time by verb",
            unit="s",
            queries=_quantiles("mfalcon_request_seconds", "verb", "@model", "{{verb}}", (0.5, 0.99)),
        ),
        Panel(
            title="Where the time of a rank goes, on average",
            unit="s",
            stacked=True,
            queries=(
                Query(
                    "sum by (stage) (rate(mfalcon_stage_seconds_sum{@model}[@rate]))"
                    ' / on () group_left () sum(rate(mfalcon_stage_seconds_count{@model,stage="reply"}[@rate]))',
                    "{{stage}}",
                ),
            ),
            tells="Seconds of each stage over the number of answered ranks.",
        ),
        Panel(
            title="p99 by stage",
            unit="s",
            queries=_quantiles("mfalcon_stage_seconds", "stage", "@model", "{{stage}}", (0.99,)),
        ),
    ),
)
DEVICE = Row(
    title="Device and event loops",
    panels=(
        Panel(
            title="Queue",
            unit="s",
            queries=(Query("mfalcon_queue_seconds{@all}", "{{instance}}"),),
            tells="The time that the jobs which wait are predicted to take.",
        ),
        Panel(
            title="Device busy",
            unit="percentunit",
            queries=(Query("sum by (instance) (rate(mfalcon_slice_seconds_sum{@all}[@rate]))", "{{instance}}"),),
            tells="The part of the time in which it computed.",
        ),
        Panel(
            title="Step over its forecast",
            unit="none",
            queries=_quantiles("mfalcon_cost_ratio", "", "@model", "", (0.5, 0.9)),
            tells="Admission is as good as this is near 1.",
        ),
        Panel(
            title="Time of a step",
            unit="s",
            queries=_quantiles("mfalcon_slice_seconds", "model", "@model", "{{model}}", (0.5, 0.99)),
        ),
        Panel(
            title="Step in progress",
            unit="s",
            queries=(Query("mfalcon_device_heartbeat_seconds{@all}", "{{instance}}"),),
            tells="A device that hangs shows here as a line that rises.",
        ),
        Panel(
            title="Event loops: lateness",
            unit="s",
            queries=_quantiles(
                "mfalcon_loop_lag_seconds", "instance, frontend", "@all", "{{instance}} {{frontend}}", (0.99,)
            ),
            tells="Of the engine's process, and of each front-end by its number.",
        ),
    ),
)
STATES = Row(
    title="KV states",
    panels=(
        Panel(
            title="Where states were found",
            unit="percentunit",
            stacked=True,
            queries=(
                Query(
                    "sum by (source) (rate(mfalcon_state_lookups_total{@model}[@rate]))"
                    " / on () group_left () sum(rate(mfalcon_state_lookups_total{@model}[@rate]))",
                    "{{source}}",
                ),
            ),
            tells="The hit rate of each tier; none: encoded from the beginning.",
        ),
        Panel(
            title="Prefix tokens reused and encoded",
            unit="short",
            stacked=True,
            queries=(Query("sum by (how) (rate(mfalcon_state_tokens_total{@model}[@rate]))", "{{how}} a second"),),
        ),
        Panel(
            title="Memory of states",
            unit="bytes",
            queries=(
                Query("sum by (instance) (mfalcon_host_bytes{@model})", "host {{instance}}"),
                Query("sum by (instance) (mfalcon_device_bytes{@model})", "GPU {{instance}}"),
                Query("sum by (instance) (mfalcon_pool_bytes{@model})", "pool {{instance}}"),
            ),
        ),
        Panel(
            title="How long a state stays unused",
            unit="s",
            queries=(
                Query("max by (instance, model) (mfalcon_host_oldest_seconds{@model})", "{{instance}} {{model}}"),
            ),
            tells="Of the state that would go next. Users who stay away for longer than that are encoded anew.",
        ),
        Panel(
            title="States evicted",
            unit="short",
            queries=(
                Query("sum by (instance) (rate(mfalcon_host_evicted_total{@model}[@rate]))", "host {{instance}}"),
                Query("sum by (instance) (rate(mfalcon_device_evicted_total{@model}[@rate]))", "GPU {{instance}}"),
            ),
        ),
        Panel(
            title="Fetch or recompute",
            unit="reqps",
            stacked=True,
            queries=(
                Query(
                    "sum by (choice, reason) (rate(mfalcon_state_decisions_total{@all}[@rate]))",
                    "{{choice}}: {{reason}}",
                ),
            ),
        ),
    ),
)
HISTORIES = Row(
    title="Appends and histories",
    panels=(
        Panel(
            title="Appends by code",
            unit="reqps",
            stacked=True,
            queries=(
                Query('sum by (code) (rate(mfalcon_requests_total{@all,verb="append_events"}[@rate]))', "{{code}}"),
            ),
        ),
        Panel(
            title="Time of appends",
            unit="s",
            queries=_quantiles("mfalcon_request_seconds", "", '@all,verb="append_events"', "", (0.5, 0.99)),
        ),
        Panel(
            title="Events appended, and those that were late",
            unit="short",
            queries=(
                Query("sum(rate(mfalcon_appended_events_total{@all}[@rate]))", "appended a second"),
                Query("sum by (fate) (rate(mfalcon_late_events_total{@all}[@rate]))", "{{fate}} a second"),
            ),
        ),
        Panel(
            title="Log on this machine",
            unit="bytes",
            queries=(
                Query("mfalcon_log_bytes{@all}", "{{instance}}"),
                Query("mfalcon_log_budget_bytes{@all} > 0", "budget {{instance}}"),
            ),
        ),
        Panel(
            title="Users who went",
            unit="short",
            queries=(
                Query("sum by (by) (increase(mfalcon_deleted_users_total{@all}[1h]))", "deleted by {{by}}"),
                Query("sum by (reason) (increase(mfalcon_log_evicted_total{@all}[1h]))", "evicted for {{reason}}"),
                Query("sum by (bound) (increase(mfalcon_log_refused_total{@all}[1h]))", "refused for {{bound}}"),
            ),
            tells="In an hour.",
        ),
        Panel(
            title="Log in a file: time of commits",
            unit="s",
            queries=_quantiles("mfalcon_log_commit_seconds", "instance", "@all", "{{instance}}", (0.5, 0.99)),
        ),
    ),
)
REDIS = Row(
    title="Redis",
    panels=(
        Panel(
            title="Time of calls, p99",
            unit="s",
            queries=_quantiles("mfalcon_redis_seconds", "op", "@all", "{{op}}", (0.99,)),
        ),
        Panel(
            title="Calls that failed",
            unit="reqps",
            stacked=True,
            queries=(
                Query("sum by (op, reason) (rate(mfalcon_redis_errors_total{@all}[@rate]))", "{{op}}: {{reason}}"),
            ),
        ),
        Panel(
            title="Breakers and stale answers",
            unit="short",
            queries=(
                Query("max by (instance, node) (mfalcon_redis_breaker_open{@all})", "open: {{instance}} {{node}}"),
                Query('sum(rate(mfalcon_log_reads_total{@all,kind="stale"}[@rate]))', "stale reads a second"),
            ),
        ),
        Panel(
            title="States to be written, and those that were not",
            unit="short",
            queries=(
                Query("sum by (instance) (mfalcon_write_behind_waiting{@all})", "waiting {{instance}}"),
                Query(
                    "sum by (reason) (rate(mfalcon_write_behind_dropped_total{@all}[@rate]))",
                    "dropped a second: {{reason}}",
                ),
            ),
        ),
    ),
)
MODELS = Row(
    title="Models and reloads",
    panels=(
        Panel(
            title="Versions served",
            unit="short",
            queries=(Query("count by (model, version) (mfalcon_model_info{@model})", "{{model}} {{version}}"),),
            tells="Replicas by the checkpoint that they serve. Two of one model are a rollout.",
        ),
        Panel(
            title="Builds and settings",
            unit="short",
            queries=(
                Query("count by (version, torch) (mfalcon_build_info{@all})", "mfalcon {{version}}, torch {{torch}}"),
                Query("count by (hash) (mfalcon_config_info{@all})", "settings {{hash}}"),
            ),
            tells="Replicas by what runs there, and by a hash of how it is set up.",
        ),
        Panel(
            title="What computes",
            unit="short",
            queries=(
                Query(
                    "count by (model, backend, device, dtype) (mfalcon_backend{@model})",
                    "{{model}} {{backend}} {{dtype}}",
                ),
            ),
            tells="Replicas by the backend of each model.",
        ),
        Panel(
            title="Reloads",
            unit="short",
            queries=(
                Query("sum by (model, result) (increase(mfalcon_reloads_total{@model}[1h]))", "{{model}} {{result}}"),
            ),
            tells="In an hour.",
        ),
        Panel(
            title="Item rows changed",
            unit="rowsps",
            queries=(Query("sum by (model) (rate(mfalcon_item_rows_total{@model}[@rate]))", "{{model}}"),),
            tells="By deltas that are served.",
        ),
        Panel(
            title="Deltas of items",
            unit="short",
            queries=(
                Query(
                    "sum by (model, result) (increase(mfalcon_item_deltas_total{@model}[1h]))", "{{model}} {{result}}"
                ),
                Query(
                    "max by (model) (mfalcon_item_delta_number{@model}) - min by (model) "
                    "(mfalcon_item_delta_number{@model})",
                    "{{model}}: replicas apart",
                ),
            ),
            tells="In an hour. What is refused leaves the last table serving. Apart: the numbers of the last delta of "
            "the replica that is furthest, and of the one that is last.",
        ),
        Panel(
            title="Time of a delta until it is served",
            unit="s",
            queries=(
                Query(
                    "histogram_quantile(0.99, sum by (model, le) "
                    "(rate(mfalcon_item_delta_seconds_bucket{@model}[@rate])))",
                    "{{model}} p99",
                ),
            ),
        ),
        Panel(
            title="Candidates without a finite score",
            unit="short",
            queries=(Query("sum by (model) (rate(mfalcon_failed_candidates_total{@model}[@rate]))", "{{model}}"),),
        ),
        Panel(
            title="Reranks and merges that were not as asked",
            unit="reqps",
            stacked=True,
            queries=(
                Query(
                    'sum by (method, outcome) (rate(mfalcon_reranks_total{@model,outcome!="done"}[@rate]))',
                    "{{method}}: {{outcome}}",
                ),
                Query(
                    'sum by (ensemble, outcome) (rate(mfalcon_merges_total{@all,outcome!="whole"}[@rate]))',
                    "{{ensemble}}: {{outcome}}",
                ),
            ),
        ),
    ),
)
PROCESSES = Row(
    title="Processes",
    panels=(
        Panel(
            title="Memory",
            unit="bytes",
            queries=(Query("process_resident_memory_bytes{@all}", "{{instance}} {{frontend}}"),),
            tells="Resident; of the engine's process, and of each front-end by its number.",
        ),
        Panel(
            title="Cores in use",
            unit="short",
            queries=(Query("rate(process_cpu_seconds_total{@all}[@rate])", "{{instance}} {{frontend}}"),),
        ),
        Panel(
            title="Starts",
            unit="short",
            queries=(
                Query("changes(process_start_time_seconds{@all}[1h])", "{{instance}}"),
                Query("increase(mfalcon_frontend_restarts_total{@all}[1h])", "{{instance}} front-end {{frontend}}"),
            ),
            tells="Of each process in an hour, beside the first.",
        ),
        Panel(
            title="Descriptors in use",
            unit="percentunit",
            queries=(Query("process_open_fds{@all} / process_max_fds{@all}", "{{instance}} {{frontend}}"),),
        ),
    ),
)

ROWS: Final = (GLANCE, RATES, TIMES, DEVICE, STATES, HISTORIES, REDIS, MODELS, PROCESSES)
