"""One step of the device thread: do jobs and answer each of them, whatever goes wrong."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from mfalcon.engine.job import CallJob, DeleteJob, Job, PrefillJob, RankJob
from mfalcon.engine.runner import Runner
from mfalcon.errors import DeadlineExceeded, EngineFailure, MFalconError, Overloaded, UnknownModel

_log = logging.getLogger(__name__)


def step(runners: Mapping[str, Runner], job: Job) -> None:
    """Do one job and answer it; an error is this request's alone. Raises what a device says that is lost for good.

    runners: by name of their model.
    """
    if _begun(job):
        _do(runners, job)


def step_batch(runner: Runner, jobs: Sequence[Job]) -> None:
    """Do jobs of different users as one computation. If that fails each is done on its own: an error is one's alone.

    Raises as `step` does.
    """
    alone = {job.model: runner for job in jobs if isinstance(job, RankJob)}
    begun = [job for job in jobs if _begun(job)]
    ranks = [job for job in begun if isinstance(job, RankJob)]
    if len(ranks) < len(begun) or len(ranks) < 2:
        for job in begun:
            _do(alone, job)
        return
    try:
        answers = runner.rank_all(ranks)
    except Exception as error:  # noqa: BLE001 (each is answered below; what is wrong with one shows there)
        if not isinstance(error, Overloaded):
            _log.warning("a batch of %d failed and is done one by one", len(ranks), exc_info=True)
        _without_frames(error)
        for job in ranks:
            if not _is_late(job):
                _do(alone, job)
        return
    for job, answer in zip(ranks, answers, strict=True):
        if isinstance(answer, MFalconError):
            job.future.set_exception(_without_frames(answer))
        else:
            job.future.set_result(answer)


def refuse(jobs: Iterable[Job], error: MFalconError) -> None:
    """Answer those that have no answer yet."""
    for job in jobs:
        if not job.future.done() and (job.future.running() or job.future.set_running_or_notify_cancel()):
            job.future.set_exception(error)


def _begun(job: Job) -> bool:
    """Whether there is anything to do: somebody waits, and not too late."""
    if not job.future.set_running_or_notify_cancel():
        return False
    return not _is_late(job)


def _is_late(job: Job) -> bool:
    """Whether its deadline has passed; then it is answered."""
    if job.deadline is None or time.monotonic() <= job.deadline:
        return False
    job.future.set_exception(DeadlineExceeded("the deadline passed while the request was queued"))
    return True


def _do(runners: Mapping[str, Runner], job: Job) -> None:
    try:
        match job:
            case RankJob():
                job.future.set_result(_runner(runners, job.model).rank(job))
            case PrefillJob():
                job.future.set_result(_runner(runners, job.model).prefill(job))
            case DeleteJob():
                for runner in runners.values():
                    runner.delete(job.user)
                job.future.set_result(None)
            case CallJob():
                job.future.set_result(job.work())
    except MFalconError as error:
        job.future.set_exception(_without_frames(error))
    except Exception as error:  # noqa: BLE001 (the step's edge: it must answer somebody)
        _log.exception("a step failed")
        failure = EngineFailure("the engine failed on this request; the server's log has the cause")
        failure.__cause__ = _without_frames(error)
        job.future.set_exception(failure)
        for runner in runners.values():
            runner.check_device()


def _runner(runners: Mapping[str, Runner], model: str) -> Runner:
    if model not in runners:
        raise UnknownModel(f"model: got {model!r}, which is no longer served")
    return runners[model]


def _without_frames(error: BaseException) -> BaseException:
    """The error and what led to it without tracebacks: their frames hold KV states and the job that holds the error."""
    chain: BaseException | None = error
    while chain is not None:
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__
    return error
