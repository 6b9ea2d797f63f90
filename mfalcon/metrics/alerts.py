"""What wakes somebody up, and what is computed beforehand: the rules for Prometheus, on the metrics of the catalog.

docs/operations.md has a heading of the same name for each alert, with what to do.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

RUNBOOK: Final = "docs/operations.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """expr: PromQL that has a sample for each thing that is wrong. wait: for how long it must be so, "" for no time.
    summary, description: what happened and what to do, with Prometheus' templates.
    """

    name: str
    expr: str
    severity: Literal["warning", "critical"]
    summary: str
    description: str
    wait: str = ""

    @property
    def runbook(self) -> str:
        """Where the documents say what to do."""
        return f"{RUNBOOK}#{self.name.lower()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A series that Prometheus computes of others. name: level:metric:operations, as is usual."""

    name: str
    expr: str
    tells: str


Rule: TypeAlias = Alert | Recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rules that are evaluated one after the other."""

    name: str
    rules: tuple[Rule, ...]


FAILED: Final = "INTERNAL|500|UNAVAILABLE|503|DEADLINE_EXCEEDED|504|RESOURCE_EXHAUSTED|429|DATA_LOSS|UNKNOWN|502"
"""Codes of requests that the service owes an answer."""
BUDGET: Final = 0.001
"""The share of failed requests that the example of an objective allows in the long run."""


def _failed_share(window: str) -> Recorded:
    return Recorded(
        name=f"mfalcon:requests_failed:ratio_rate{window}",
        expr=f"""\
(sum by (job) (rate(mfalcon_requests_total{{code=~"{FAILED}"}}[{window}]))
    or 0 * sum by (job) (rate(mfalcon_requests_total[{window}])))
  / sum by (job) (rate(mfalcon_requests_total[{window}]))""",
        tells=f"The share of the requests of the last {window} that ended in a code for which the service answers: "
        "refused, late, unavailable, or a defect.",
    )


def _rank_quantile(quantile: float) -> Recorded:
    return Recorded(
        name=f"mfalcon:rank_seconds:p{round(100 * quantile)}_rate5m",
        expr=f"""\
histogram_quantile({quantile:g},
  sum by (job, le, model) (rate(mfalcon_request_seconds_bucket{{verb="rank"}}[5m])))""",
        tells=f"The {round(100 * quantile)}th percentile of the time of answered ranks, of all replicas.",
    )


RECORDED = Group(
    name="mfalcon-recorded",
    rules=(
        Recorded(
            name="mfalcon:goodput:rate5m",
            expr='sum by (job, model) (rate(mfalcon_requests_total{verb="rank",code=~"OK|200"}[5m]))',
            tells="Ranks a second that were answered before their deadlines.",
        ),
        *(_failed_share(window) for window in ("5m", "30m", "1h", "6h")),
        *(_rank_quantile(quantile) for quantile in (0.5, 0.99)),
        Recorded(
            name="mfalcon:state_hits:ratio_rate5m",
            expr="""\
sum by (job, model) (rate(mfalcon_state_lookups_total{source!="none"}[5m]))
  / sum by (job, model) (rate(mfalcon_state_lookups_total[5m]))""",
            tells="The share of the requests whose KV state was found in some tier.",
        ),
        Recorded(
            name="mfalcon:device_busy:ratio_rate5m",
            expr="sum by (job, instance) (rate(mfalcon_slice_seconds_sum[5m]))",
            tells="The part of the time in which a replica's device computed.",
        ),
    ),
)

CALLERS = Group(
    name="mfalcon-callers",
    rules=(
        Alert(
            name="MfalconDown",
            expr='up{job="mfalcon"} == 0',
            wait="1m",
            severity="critical",
            summary="{{ $labels.instance }} cannot be scraped",
            description="It is dead, frozen or cut off. Its users are served by the other replicas, from Redis or "
            "anew.",
        ),
        Alert(
            name="MfalconInternalErrors",
            expr="""\
sum by (model, verb) (increase(mfalcon_requests_total{code=~"INTERNAL|500"}[5m])) > 0
  or sum by (model, verb) (
    mfalcon_requests_total{code=~"INTERNAL|500"}
      unless mfalcon_requests_total{code=~"INTERNAL|500"} offset 5m) > 0""",
            severity="critical",
            summary="{{ $labels.verb }} of {{ $labels.model }} ends in INTERNAL",
            description="A defect, or a model none of whose scores is finite. The log has the cause.",
        ),
        Alert(
            name="MfalconErrorBudgetBurnsFast",
            expr=f"""\
mfalcon:requests_failed:ratio_rate5m > {14.4 * BUDGET:g}
  and mfalcon:requests_failed:ratio_rate1h > {14.4 * BUDGET:g}""",
            wait="2m",
            severity="critical",
            summary="{{ $value | humanizePercentage }} of the requests fail",
            description="In this hour as many requests failed as 99.9% allow in 14 hours. Look at the codes first.",
        ),
        Alert(
            name="MfalconErrorBudgetBurnsSlowly",
            expr=f"""\
mfalcon:requests_failed:ratio_rate30m > {6 * BUDGET:g}
  and mfalcon:requests_failed:ratio_rate6h > {6 * BUDGET:g}""",
            wait="15m",
            severity="warning",
            summary="{{ $value | humanizePercentage }} of the requests fail, for hours",
            description="In these 6 hours as many requests failed as 99.9% allow in 36. Look at the codes first.",
        ),
        Alert(
            name="MfalconFailedCandidates",
            expr="sum by (model) (rate(mfalcon_failed_candidates_total[5m])) > 0",
            severity="warning",
            summary="{{ $labels.model }} gives some candidates no finite score",
            description="The answers name them in failed, and the log has their ids. Go back to the last checkpoint.",
        ),
        Alert(
            name="MfalconDeadlinesMissed",
            expr="""\
sum(rate(mfalcon_requests_total{code=~"DEADLINE_EXCEEDED|504"}[5m]))
  / sum(rate(mfalcon_requests_total[5m])) > 0.01""",
            wait="5m",
            severity="warning",
            summary="{{ $value | humanizePercentage }} of the requests wait in vain",
            description="Look at mfalcon_stage_seconds for where the time goes, and at mfalcon_cost_ratio for "
            "forecasts.",
        ),
        Alert(
            name="MfalconRefuses",
            expr="""\
sum(rate(mfalcon_requests_total{code=~"RESOURCE_EXHAUSTED|429"}[5m]))
  / sum(rate(mfalcon_requests_total[5m])) > 0.001""",
            wait="10m",
            severity="warning",
            summary="{{ $value | humanizePercentage }} of the requests are refused",
            description="More is asked than these replicas can do in time. Add replicas (docs/operations.md, "
            "Overload).",
        ),
        Alert(
            name="MfalconSlow",
            expr="""\
histogram_quantile(0.99,
  sum by (le, model) (rate(mfalcon_request_seconds_bucket{verb="rank"}[5m]))) > 0.1""",
            wait="10m",
            severity="warning",
            summary="p99 of {{ $labels.model }} is {{ $value | humanizeDuration }}",
            description="The bound of 100 ms is an example. Put yours here.",
        ),
    ),
)

REPLICAS = Group(
    name="mfalcon-replicas",
    rules=(
        Alert(
            name="MfalconDeviceStalled",
            expr="mfalcon_device_heartbeat_seconds > 5",
            severity="critical",
            summary="A step of {{ $labels.instance }} has run for {{ $value | humanizeDuration }}",
            description="The server ends itself after --device-stall-s, and is started again.",
        ),
        Alert(
            name="MfalconRestarts",
            expr="""\
sum by (job, instance, frontend) (changes(process_start_time_seconds{job="mfalcon"}[30m])) > 2""",
            severity="warning",
            summary="{{ $labels.instance }} started {{ $value }} times in 30 minutes",
            description="Something ends it again and again: memory, a device, a probe. The last lines of its log say "
            "why.",
        ),
        Alert(
            name="MfalconEventLoopLate",
            expr="""\
increase(mfalcon_loop_lag_seconds_count[5m])
  - ignoring(le) increase(mfalcon_loop_lag_seconds_bucket{le="0.1"}[5m]) > 5""",
            severity="warning",
            summary="The event loop of {{ $labels.instance }} was late {{ $value | humanize }} times in 5 minutes",
            description="While it is held up it serves nobody. Processor time is short, or something blocks.",
        ),
        Alert(
            name="MfalconReloadFailed",
            expr='increase(mfalcon_reloads_total{result="failed"}[15m]) > 0',
            severity="warning",
            summary="{{ $labels.instance }} did not take a checkpoint of {{ $labels.model }}",
            description="The old one serves on. The log says why.",
        ),
        Alert(
            name="MfalconCertificateExpires",
            expr="mfalcon_tls_certificate_expiry_timestamp_seconds - time() < 7 * 86400",
            severity="warning",
            summary="The certificate of {{ $labels.instance }} expires in {{ $value | humanizeDuration }}",
            description="Put a new one in the place of its files; the server takes it without a restart.",
        ),
        Alert(
            name="MfalconCertificateRefused",
            expr='increase(mfalcon_tls_certificate_changes_total{outcome="refused"}[15m]) > 0',
            severity="warning",
            summary="{{ $labels.instance }} did not take a new certificate",
            description="It serves the one of before. The log says what is wrong with the new files.",
        ),
        Alert(
            name="MfalconDescriptorsShort",
            expr='process_open_fds{job="mfalcon"} / process_max_fds{job="mfalcon"} > 0.8',
            wait="5m",
            severity="warning",
            summary="{{ $labels.instance }} has used {{ $value | humanizePercentage }} of its descriptors",
            description="Connections that nobody closes, or a limit that is too low (ulimit -n).",
        ),
    ),
)

LOG = Group(
    name="mfalcon-log",
    rules=(
        Alert(
            name="MfalconLogWriteFails",
            expr="sum without (reason) (increase(mfalcon_log_failed_total[5m])) > 0",
            severity="critical",
            summary="{{ $labels.instance }} cannot write its event log",
            description="Appends are refused. The log says why. A full disk needs room, and nothing else.",
        ),
        Alert(
            name="MfalconLogFull",
            expr="sum without (bound) (increase(mfalcon_log_refused_total[15m])) > 0",
            severity="warning",
            summary="{{ $labels.instance }} refuses new users: its event log is full",
            description="Raise --log-budget-mb or --log-max-users, or choose who goes (--log-when-full evict).",
        ),
        Alert(
            name="MfalconLogLosesUsers",
            expr="""\
sum without (reason) (increase(mfalcon_log_evicted_total{reason="bytes"}[15m])) > 0
  and sum without (bound) (increase(mfalcon_log_refused_total{bound="bytes"}[15m])) > 0""",
            severity="critical",
            summary="{{ $labels.instance }} deletes known users: their histories fill its event log",
            description="Those who were not asked for longest go first. Raise --log-budget-mb.",
        ),
        Alert(
            name="MfalconLogDamaged",
            expr="mfalcon_log_damaged_users > 0",
            severity="critical",
            summary="{{ $labels.instance }} has {{ $value }} damaged histories",
            description="They are refused, others are not concerned. `mfalcon log verify` names them. Look at the "
            "disk.",
        ),
    ),
)

REDIS = Group(
    name="mfalcon-redis",
    rules=(
        Alert(
            name="MfalconRedisAway",
            expr="mfalcon_redis_breaker_open == 1",
            wait="1m",
            severity="critical",
            summary="{{ $labels.instance }} does not reach Redis {{ $labels.node }}",
            description="Appends are refused, and ranks are refused or stale (--log-unreachable). Bring Redis back.",
        ),
        Alert(
            name="MfalconStaleAnswers",
            expr='sum by (instance) (increase(mfalcon_log_reads_total{kind="stale"}[5m])) > 0',
            severity="warning",
            summary="{{ $labels.instance }} ranks from histories that it cannot verify",
            description="Redis is away or slow, and --log-unreachable is stale. The answers say so.",
        ),
        Alert(
            name="MfalconCountersBehind",
            expr="mfalcon_counters_waiting > 0",
            wait="5m",
            severity="warning",
            summary="Events of {{ $value }} users wait at {{ $labels.instance }} to be counted",
            description="Ranks read older counters of items and say so. It ends by itself once Redis takes writes "
            "again.",
        ),
        Alert(
            name="MfalconLogWentBack",
            expr="increase(mfalcon_log_rollbacks_total[5m]) > 0",
            severity="critical",
            summary="{{ $labels.instance }} knew events that are no longer in Redis",
            description="A failover to a Redis that lagged, an older file, or an old log that somebody put back.",
        ),
        Alert(
            name="MfalconRedisDamaged",
            expr="""\
sum without (reason) (increase(mfalcon_log_damaged_total[5m])) > 0
  or sum without (reason) (
    mfalcon_log_damaged_total unless mfalcon_log_damaged_total offset 5m) > 0
  or sum without (reason) (
    increase(mfalcon_chunks_rejected_total{reason!~"history|model|dtype|shape"}[5m])) > 0""",
            severity="critical",
            summary="{{ $labels.instance }} read from Redis what cannot be right",
            description="Damage, forgery or a defect. What is damaged is not used. Find out who writes to that Redis.",
        ),
    ),
)

GROUPS: Final = (RECORDED, CALLERS, REPLICAS, LOG, REDIS)
ALERTS: Final = tuple(rule for group in GROUPS for rule in group.rules if isinstance(rule, Alert))
