"""What the trace of a request tells of its way through the log, the queue and the device, once that is over."""

from collections.abc import Sequence

from mfalcon.engine.job import RankJob
from mfalcon.engine.progress import Slice
from mfalcon.spans import Event, Value, stage
from mfalcon.types import CacheSource, RankResult


def tell(job: RankJob, began: float, ended: float) -> None:
    """Of a traced job that is answered, or failed. began: when the log was asked; ended: when the answer was here."""
    fetched = job.fetched_history
    log_until = began + fetched.log_seconds
    stage("log", began, log_until, {"mfalcon.history_len": len(fetched.history), "mfalcon.stale": fetched.stale})
    if fetched.decision is not None:
        stage("fetch", log_until, began + fetched.seconds, {"mfalcon.state.decision": fetched.decision.explain()})
    slices = job.slices or []
    forecast = job.forecast
    stage(
        "queue",
        job.queued,
        slices[0].began if slices else ended,
        {
            "mfalcon.forecast_us": round(1e6 * forecast.seconds),
            "mfalcon.forecast.first_us": round(1e6 * forecast.least_s),
            "mfalcon.slices": len(slices),
        },
    )
    encoded = [each for each in slices if each.num_events]
    if encoded:
        source = job.future.result().cache.source if _is_answered(job) else None
        name = "prefill" if source is CacheSource.NONE else "append" if source is not None else "encode"
        stage(name, encoded[0].encoding, encoded[-1].scoring, None, _events(encoded, slices, of_scores=False))
    scored = [each for each in slices if each.num_candidates]
    if scored:
        stage("score", scored[0].scoring, scored[-1].ended, None, _events(scored, slices, of_scores=True))


def _is_answered(job: RankJob) -> bool:
    """Whether there is a result, and no error."""
    return job.future.done() and not job.future.cancelled() and job.future.exception() is None


def _events(slices: Sequence[Slice], every: Sequence[Slice], *, of_scores: bool) -> list[Event]:
    """One for each slice: what was done, with how many others, and how long the scheduler had others go before."""
    events = list[Event]()
    for each in slices:
        at = every.index(each)
        waited = each.began - every[at - 1].ended if at else 0.0
        more: dict[str, Value] = {
            "mfalcon.batch": each.batch,
            "mfalcon.waited_us": round(1e6 * max(0.0, waited)),
            "mfalcon.candidates" if of_scores else "mfalcon.events": (
                each.num_candidates if of_scores else each.num_events
            ),
            "mfalcon.took_us": round(1e6 * (each.ended - each.scoring if of_scores else each.scoring - each.encoding)),
        }
        events.append((each.scoring if of_scores else each.encoding, "slice", more))
    return events


def explained(result: RankResult, model: str) -> dict[str, Value]:
    """What the span of a rank tells of its answer; never its user."""
    return {
        "mfalcon.model": model,
        "mfalcon.model_version": result.model_version,
        "mfalcon.candidates": len(result.scores),
        "mfalcon.history_len": result.history_len,
        "mfalcon.stale": result.stale,
        "mfalcon.state.source": result.cache.source.name.lower(),
        "mfalcon.state.reused_tokens": result.cache.reused_tokens,
        "mfalcon.state.encoded_tokens": result.cache.encoded_tokens,
        "mfalcon.queue_us": result.timings.queue_us,
        "mfalcon.state_us": result.timings.state_us,
        "mfalcon.encode_us": result.timings.encode_us,
        "mfalcon.score_us": result.timings.score_us,
    }
