"""A library of the fused kernel is loaded only if a small random stack in it agrees with the reference ops."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from kernels.cpu import build_library
from kernels.cpu.build_library import POLICIES, Policy
from kernels.cpu.library import FusedUnavailable, Kernel, available
from kernels.cpu.linear import FusedLinear
from kernels.cpu.sample_readout import ODD, readout_deviation
from kernels.cpu.shared_table import differs
from kernels.cpu.stack import FusedStack
from kernels.reach import Reach
from kernels.sample_stack import Form, Sample, sample

SELF_CHECK_BOUND = {"float32": 2e-5, "bfloat16": 5e-2, "int8": 5e-2}
"""Worst difference from `kernels.reference`, relative to the largest output. float32: sums in another order; bfloat16:
8 bits, over two layers."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of what is computed: prefix tokens, the first ones of them as a prefill, targets, tokens of a page, threads."""

    num_tokens: int
    prefill: int
    num_targets: int
    page_tokens: int
    threads: int


SMALL = Size(77, 70, 13, 32, 1)
LARGE = Size(1_100, 1_050, 200, 128, 2)
"""More than two blocks of keys of every policy, over several pages, by two threads."""


def load(policy: str | None = None, sanitize: str = "") -> Kernel:
    """A policy's library, checked against `kernels.reference`; without a name the fastest one in float32.

    Raises FusedUnavailable.
    """
    names = available(sanitize)
    if policy is None:
        policy = next((name for name in names if POLICIES[name].element == "float32"), None)
    if policy is None or policy not in names:
        lacking = sorted(POLICIES[policy].cpu_flags - build_library.cpu_flags()) if policy else []
        why = "not compiled (python -m kernels.cpu.build_library)"
        if lacking:
            why = f"this processor lacks {', '.join(lacking)}"
        raise FusedUnavailable(f"fused kernel {policy or 'of float32'}: {why}")
    path = build_library.library_path(POLICIES[policy], sanitize)
    return checked(POLICIES[policy], path, threads=sanitize != "thread")


@cache
def checked(policy: Policy, path: Path, *, threads: bool) -> Kernel:
    """A library that agrees with `kernels.reference`: a process asks that of each library once, however many models it
    loads. threads: whether several of OpenMP are tried too; to ThreadSanitizer their barriers are false alarms.

    Raises FusedUnavailable.
    """
    try:
        kernel = Kernel(policy, path)
    except (OSError, AttributeError) as error:
        raise FusedUnavailable(f"fused kernel {policy.name}: cannot be loaded: {error}") from error
    large = LARGE if threads else replace(LARGE, threads=1)
    for form, size in (
        (Form(), SMALL),
        (Form(concat=True, reach=(Reach(7, 20, 3), None)), SMALL),
        (Form(reach=(None, Reach(300, 500, 70))), large),
        (Form(softmax=True, reach=(Reach(300, 500, 70), None)), large),
    ):
        known = sample(size.num_tokens, size.num_targets, form)
        for int8 in (False, True):
            worst = deviation(kernel, size, known, int8=int8)
            if not worst <= SELF_CHECK_BOUND["int8" if int8 else policy.element]:
                of_pages = " over int8 pages" if int8 else ""
                raise FusedUnavailable(
                    f"fused kernel {policy.name}{of_pages}: differs from the reference by {worst:.1e} in its self-check"
                )
    if differs(kernel):
        raise FusedUnavailable(f"fused kernel {policy.name}: finds other rows of a shared table in its self-check")
    if kernel.dtype == torch.float32:
        worst = linear_deviation(kernel)
        if not worst <= SELF_CHECK_BOUND["float32"]:
            raise FusedUnavailable(
                f"fused kernel {policy.name}: a linear layer differs by {worst:.1e} in its self-check"
            )
        worst = readout_deviation(kernel, ODD)
        if not worst <= SELF_CHECK_BOUND["float32"]:
            raise FusedUnavailable(
                f"fused kernel {policy.name}: the end of a model differs by {worst:.1e} in its self-check"
            )
    return kernel


def linear_deviation(kernel: Kernel) -> float:
    """Worst relative difference of linear layers of odd sizes from float64's."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for rows, depth, columns in ((13, 77, 70), (1, 5, 3)):
        shapes = ((rows, depth), (columns, depth), (columns,))
        x, weight, bias = (torch.randn(*shape, generator=generator) for shape in shapes)
        layer = FusedLinear(kernel, weight, bias)
        expected = x.double() @ weight.double().t() + bias.double()
        for found, wanted in (
            (layer(x, relu=True), expected.relu()),
            (layer(x, factor=layer(x), before=layer(x)), expected * expected + expected),
        ):
            worst = max(worst, float((found.double() - wanted).abs().max() / wanted.abs().max()))
    return worst


def deviation(kernel: Kernel, size: Size, known: Sample, *, int8: bool) -> float:
    """Worst relative difference of a small random stack from the reference ops: prefill, append and score. known: the
    stack, of that size.
    """
    n, page = size.num_tokens, size.page_tokens
    stack = FusedStack(kernel, known.config, known.layers, page, int8)
    num_pages = -(-n // page)
    memory = torch.empty(num_pages, stack.page_bytes, dtype=torch.uint8).fill_(255)
    for index, of_page in enumerate(known.times.split(page)):
        memory.view(torch.int64)[index, : len(of_page)] = of_page
    pages = memory.data_ptr() + stack.page_bytes * torch.arange(num_pages)
    stack.extend(pages, 0, known.x[: size.prefill], size.threads)
    stack.extend(pages, size.prefill, known.x[size.prefill :], size.threads)
    kv = [stack.read(pages, layer, 0, n) for layer in range(stack.num_layers)]
    return known.deviation(kv, stack.score(pages, n, known.targets, known.now, size.threads))
