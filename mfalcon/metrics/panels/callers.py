"""What callers get: at a glance, how many, and how long it takes."""

from mfalcon.metrics.alerts import FAILED
from mfalcon.metrics.panels.panel import Panel, Query, Row, quantiles

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
            queries=quantiles("mfalcon_request_seconds", "", '@model,verb="rank"', "", (0.99,)),
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
                *quantiles("mfalcon_request_seconds", "", '@model,verb="rank"', "", (0.5, 0.95, 0.99)),
                *quantiles("mfalcon_first_part_seconds", "", "@model", "first part of a stream", (0.5, 0.99)),
            ),
        ),
        Panel(
            title="Time by verb",
            unit="s",
            queries=quantiles("mfalcon_request_seconds", "verb", "@model", "{{verb}}", (0.5, 0.99)),
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
            queries=quantiles("mfalcon_stage_seconds", "stage", "@model", "{{stage}}", (0.99,)),
        ),
    ),
)
