"""The fused CPU kernel against the torch kernels and the counted floor: `python -m loadtest.bench_fused`."""

import argparse
import statistics
from collections.abc import Callable

import torch

from kernels import fused
from loadtest.floor import Work, append_work, prefill_work, score_work
from loadtest.peaks import Peaks, faster, probe
from loadtest.shapes import (
    REQUEST_TIME_MS,
    SHAPES,
    Shape,
    events_between,
    random_events,
    random_model,
    random_targets,
)
from loadtest.timing import take_turns
from mfalcon.algorithm import append, prefill, score
from mfalcon.models.fused import fused_stack

_EAGER_MICROBATCH = 128
Action = Callable[[int], object]
"""What is timed; it is given its round."""


def _ignoring_round(function: Callable[..., object], *arguments: object) -> Action:
    return lambda _: function(*arguments)


def main() -> None:
    """One line per cell: medians and minima in milliseconds of both, and their share of the floor at the minimum."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_fused", description=__doc__)
    parser.add_argument("--shape", action="append", choices=list(SHAPES))
    parser.add_argument("--threads", action="append", type=int)
    parser.add_argument("--history", type=int, default=1024)
    parser.add_argument("--candidates", type=int, nargs="*", default=[64, 512, 2048])
    parser.add_argument("--microbatch", type=int, default=96)
    parser.add_argument("--policy")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--no-eager", action="store_true")
    options = parser.parse_args()
    kernel = fused.load(options.policy)
    for threads in options.threads or [1, 2]:
        torch.set_num_threads(threads)
        peaks = probe(1.0)
        print(f"{kernel.policy.name}, threads {threads}, n {options.history}, microbatch {options.microbatch}")
        for name in options.shape or ["S", "B"]:
            with torch.inference_mode():
                peaks = _cells(SHAPES[name], kernel, threads, peaks, options)


def _cells(shape: Shape, kernel: fused.Kernel, threads: int, peaks: Peaks, options: argparse.Namespace) -> Peaks:
    n = options.history
    model = random_model(shape, torch.float32, 0)
    stack = fused_stack(kernel, model.stack)
    events = random_events(n + 1, 1)
    older, newest = events_between(events, 0, n), events_between(events, n, n + 1)
    x, times = model.prefix_tokens(events), model.token_times(events)
    state, packed = prefill(model, older), stack.extend(stack.empty(n + 64), x[:n], times[:n], threads)
    cells: list[tuple[str, Work, dict[str, Action]]] = []
    for m in options.candidates:
        targets = random_targets(m, 2)
        tokens = model.target_tokens(targets)
        cells.append(
            (
                f"score m={m}",
                score_work(shape, n, m),
                {
                    "eager": _ignoring_round(score, model, state, targets, REQUEST_TIME_MS, _EAGER_MICROBATCH),
                    "fused": _ignoring_round(stack.score, packed, tokens, REQUEST_TIME_MS, threads, options.microbatch),
                },
            )
        )
    cells.append(
        (
            "prefill",
            prefill_work(shape, n),
            {
                "eager": lambda _: prefill(model, older),
                "fused": lambda _: stack.extend(stack.empty(n), x[:n], times[:n], threads),
            },
        )
    )
    appended = stack.extend(packed, x[n:], times[n:], threads).buffer

    def append_one(_: int) -> None:
        appended.filled = n  # as if the last append had not been
        stack.extend(packed, x[n:], times[n:], threads)

    def eager_append_one(_: int) -> None:
        state.buffer.filled = n
        append(model, state, newest)

    cells.append(("append 1", append_work(shape, n, 1), {"eager": eager_append_one, "fused": append_one}))
    for label, work, actions in cells:
        if options.no_eager:
            del actions["eager"]
        for action in actions.values():
            action(0)
        samples = take_turns(actions, options.seconds, 3, 400)
        peaks = faster(peaks, probe(0.4))
        floor = work.seconds(peaks.float32_flops, peaks.silus) * 1e3
        compute = work.flops / peaks.float32_flops * 1e3
        line = f"{shape.name} {label:12s} floor {floor:8.2f} (products alone {compute:8.2f})"
        for name, seconds in samples.items():
            median, best = statistics.median(seconds) * 1e3, min(seconds) * 1e3
            line += f" | {name} {median:8.2f} min {best:8.2f} ({floor / median:4.0%}, min {floor / best:4.0%})"
        if "eager" in samples:
            line += f" | {statistics.median(samples['eager']) / statistics.median(samples['fused']):.2f}x"
        print(line, flush=True)
    print(f"peaks: {peaks.float32_flops / 1e9:.0f} GFLOP/s ({peaks.float32_by}), {peaks.silus / 1e9:.2f} G SiLU/s")
    return peaks


if __name__ == "__main__":
    main()
