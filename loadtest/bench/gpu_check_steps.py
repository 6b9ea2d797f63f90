"""Those steps of `loadtest.bench.gpu_checks` that launch kernels, and the compilation of what they launch.

`python -m loadtest.bench.gpu_check_steps NAME --record FILE --seconds S` is one of them.
"""

from contextlib import suppress
from functools import partial

import torch

from kernels.gpu.hopper import self_check as hopper_self_check
from kernels.gpu.hopper.self_check import Kind
from kernels.gpu.self_check import deviation
from kernels.sample_stack import Form
from loadtest.bench import gpu_profile
from loadtest.bench.gpu_cases import FP8_PRODUCTS, PREFIX, TARGET, Case
from loadtest.bench.gpu_engine_sizes import REAL
from loadtest.bench.gpu_prewarm import warm
from loadtest.bench.gpu_record import Record
from loadtest.bench.gpu_run import asked
from loadtest.bench.gpu_steps import Step, run, time_kernels
from loadtest.bench.gpu_timing import Place
from loadtest.bench.random_checkpoint import random_checkpoint
from mfalcon.backends.base import DEVICE_MICROBATCH
from mfalcon.backends.triton import TritonBackend
from mfalcon.kvcache.state import KVPool

CODED = tuple(
    Case(op, n, m, 128, 1, codes=codes)
    for codes in ("int8", "fp8")
    for op, n, m in ((TARGET, 4096, 2048), (TARGET, 6673, 2048), (PREFIX, 4096, 4096))
) + tuple(Case(TARGET, n, 2048, 128, 1, codes=FP8_PRODUCTS) for n in (4096, 6673))
_POOL_PAGES = 2_048


def _start(where: Place, _: Record) -> None:
    """What an engine launches before it serves: the kernels' self-check, then every class of sizes."""
    for form in (Form(), Form(concat=True)):
        with suppress(NotImplementedError):  # what has no memory cannot be compared
            deviation(where.device, torch.bfloat16, form)
    for op in (TARGET, PREFIX):
        with suppress(NotImplementedError, RuntimeError):  # as above: it is only rehearsed
            hopper_self_check.deviation(where.device, Kind(op, torch.bfloat16, 128, 128, True))
    with suppress(NotImplementedError, RuntimeError):
        hopper_self_check.deviation(where.device, Kind(TARGET, torch.bfloat16, 128, 128, False, fp8=True))
    model = random_checkpoint(REAL.shape, 1, max_history=REAL.max_history).prefix_model.to(where.device)
    model.cast(torch.bfloat16)
    backend = TritonBackend(model.stack, model.kv_shape(), ahead=True)
    backend.prepare(KVPool(backend.layout, _POOL_PAGES), DEVICE_MICROBATCH)


def _small(where: Place, _: Record) -> None:
    gpu_profile.small(where.device)


STEPS = (Step("start", _start), Step("codes", partial(time_kernels, CODED)), Step("small", _small))
"""The first is only rehearsed, for what an engine compiles, and the last for what the sanitizer looks at."""
PREWARM = "prewarm"


def main() -> None:
    """One step, or what compiles all of them."""
    given = asked(__doc__, [PREWARM, *(step.name for step in STEPS)])
    if given.name == PREWARM:
        warm(STEPS, given)
    else:
        run(STEPS, given)


if __name__ == "__main__":
    main()
