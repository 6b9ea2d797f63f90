"""What is kept of users: KV states, histories, and both in Redis."""

from mfalcon.metrics.panels.panel import Panel, Query, Row, quantiles

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
            queries=quantiles("mfalcon_request_seconds", "", '@all,verb="append_events"', "", (0.5, 0.99)),
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
            queries=quantiles("mfalcon_log_commit_seconds", "instance", "@all", "{{instance}}", (0.5, 0.99)),
        ),
    ),
)

REDIS = Row(
    title="Redis",
    panels=(
        Panel(
            title="Time of calls, p99",
            unit="s",
            queries=quantiles("mfalcon_redis_seconds", "op", "@all", "{{op}}", (0.99,)),
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
