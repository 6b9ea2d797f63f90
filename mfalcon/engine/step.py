"""One step of the device thread: a slice of some jobs, and an answer for each that is done, whatever goes wrong."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from mfalcon.engine.job import CallJob, RankJob
from mfalcon.engine.runner import Answer, Runner
from mfalcon.errors import DeadlineExceeded, EngineFailure, MFalconError, Overloaded, UnknownModel
from mfalcon.memory import is_out_of_memory

_log = logging.getLogger(__name__)


def step(
    runners: Mapping[str, Runner],
    jobs: Sequence[RankJob],
    seconds: float,
    make_room: Callable[[int], bool] = lambda _: False,
) -> list[RankJob]:
    """Do a slice of jobs of one model; who is done has an answer then. If several fail each is done on its own: an
    error is one's alone. Returns those that there was anything to do for. Raises what a device says that is lost for
    good.

    runners: by name of their model. seconds: predicted, of the slice. make_room: told that so many jobs at
    once were too much for the memory, has jobs that wait give up their pages and says whether there were any.
    """
    jobs = [job for job in jobs if _is_wanted(runners, job)]
    if not jobs:
        return jobs
    runner = runners[jobs[0].model]
    try:
        answers = runner.advance(jobs, seconds)
    except Exception as error:  # noqa: BLE001 (the step's edge: it must answer somebody)
        for job in jobs:
            runner.let_go(job)
        if not isinstance(error, MFalconError):
            names = ",".join(job.request_id for job in jobs if job.request_id)
            _log.error("a step of %d requests failed", len(jobs), exc_info=error, extra={"request_id": names})
        _without_frames(error)  # before anything is tried again: they hold pages
        is_out = is_out_of_memory(error)
        too_many = len(jobs) if is_out else 1  # pages come back, memory that a step never had does not
        has_room = (is_out or isinstance(error, Overloaded)) and make_room(too_many)
        if len(jobs) > 1:
            for job in jobs:
                step(runners, [job], seconds, make_room)
        elif has_room or (is_out and seconds):
            step(runners, jobs, 0.0)  # the least that is done at once
        else:
            _fail(runner, jobs[0], error)
        return jobs
    for job, answer in zip(jobs, answers, strict=True):
        if answer is not None:
            _answer(job, answer)
        if job.future.done():
            runner.let_go(job)
    return jobs


def refuse(jobs: Iterable[RankJob | CallJob], error: MFalconError) -> None:
    """Answer those that have no answer yet."""
    for job in jobs:
        if not job.future.done() and job.future.set_running_or_notify_cancel():
            job.future.set_exception(_without_frames(error))


def call(job: CallJob) -> None:
    """Do something else; what goes wrong is the answer."""
    if not job.future.set_running_or_notify_cancel():
        return
    try:
        job.future.set_result(job.work())
    except Exception as error:  # noqa: BLE001 (the step's edge: whoever awaits the future gets it)
        job.future.set_exception(_without_frames(error))


def _is_wanted(runners: Mapping[str, Runner], job: RankJob) -> bool:
    """Whether there is anything to do: somebody waits, not too late, and for a model that is served."""
    answer: Answer | None = None
    runner = runners.get(job.model)
    if runner is None:
        answer = UnknownModel(f"model: got {job.model!r}, which is no longer served")
    elif job.due < time.monotonic():
        how = "queued" if job.progress is None else "computed"
        answer = DeadlineExceeded(f"the deadline passed while the request was {how}")
    elif not job.future.done():
        return True
    if runner is not None:
        runner.let_go(job)
    if answer is not None:
        _answer(job, answer)
    return False


def _answer(job: RankJob, answer: Answer) -> None:
    """Unless the caller has left."""
    if isinstance(answer, MFalconError):
        refuse([job], answer)
    elif job.future.set_running_or_notify_cancel():
        job.future.set_result(answer)


def _fail(runner: Runner, job: RankJob, error: Exception) -> None:
    if isinstance(error, MFalconError):
        _answer(job, error)
        return
    if is_out_of_memory(error):
        _answer(job, Overloaded("the server has no memory left for this request"))
        return
    failure = EngineFailure("the engine failed on this request; the server's log has the cause")
    failure.__cause__ = error
    _answer(job, failure)
    runner.check_device()


def _without_frames(error: BaseException) -> BaseException:
    """The error and what led to it without tracebacks: their frames hold KV states and the job that holds the error."""
    chain: BaseException | None = error
    while chain is not None:
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__
    return error
