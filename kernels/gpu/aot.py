"""Every kernel compiled ahead of time, on a machine without a GPU: registers, spills and shared memory, held to limits.

`python -m kernels.gpu.aot` calls the ops as production does, on tensors without memory and under a driver that only
names its architecture, catches what Triton is asked to compile, and reads the machine code. A case that needs more
than `limits.json` grants it fails; `--write` grants what it needs now.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JitFunctionInfo

from kernels.bias import RelativeBias
from kernels.gpu import configs
from kernels.gpu.interpreter import interpreted
from kernels.gpu.kv_write import kv_write
from kernels.gpu.linear import linear
from kernels.gpu.norms import layer_norm, norm_gate
from kernels.gpu.page_copy import page_copy
from kernels.gpu.prefix_attention import prefix_attention_parts
from kernels.gpu.target_attention import target_attention_parts
from kernels.gpu.target_bias import target_bias
from kernels.paged import Batch, BatchSizes, PagedKV, unpacked

LIMITS = Path(__file__).with_name("limits.json")
ARCHITECTURES = (80, 89, 90)
_PROCESSES = 2
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_RESERVED = 1024
"""Bytes of shared memory that the system takes of a program from 9.0 on, beyond what a program may have."""
_NUM_HEADS, _PAGE_TOKENS, _NUM_PAGES, _NUM_ROWS = 4, 128, 64, 333
_SIZES = BatchSizes(num_users=5, num_pages=_NUM_PAGES, num_tiles=9)
_ASYNC_COPY = "cp.async.cg.shared.global"
"""16 bytes from global to shared memory, past the registers."""


@dataclass(frozen=True, slots=True)
class Figures:
    """registers: of a thread. spilled: its bytes of local memory. shared: bytes of a program."""

    registers: int
    spilled: int
    shared: int


@dataclass(frozen=True, slots=True)
class Case:
    """One specialisation of one kernel. call: the op, with its arguments. instructions: what its PTX must have."""

    key: str
    architecture: int
    call: Callable[[], object]
    instructions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a case came to. lacks: the expected instructions that its PTX has not."""

    key: str
    figures: Figures
    lacks: tuple[str, ...]


class _Driver:
    """A driver of a device that is not there."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def cases(architecture: int) -> list[Case]:
    """All of an architecture."""
    found = [*_attention_cases(architecture), *_linear_cases(architecture), *_small_cases(architecture)]
    assert len({case.key for case in found}) == len(found)
    return found


def _attention_cases(architecture: int) -> Iterator[Case]:
    def attention(
        dtype: torch.dtype,
        dims: tuple[int, int],
        rows: int,
        *,
        bias: bool = False,
        codes: torch.dtype | None = None,
        ops: tuple[Callable[..., None], ...] = (_target_attention, _prefix_attention),
    ) -> Iterator[Case]:
        for op in ops:
            product = "wgmma" if architecture >= 90 and rows >= 64 else "mma.sync"
            instructions = (product, "tanh.approx", *([] if codes else [_ASYNC_COPY])) if dtype.itemsize == 2 else ()
            key = f"{architecture} {op.__name__[1:]} {_name(dtype)} {dims[0]}x{dims[1]} rows{rows}"
            key += (" bias" if bias else "") + (f" {_name(codes)}" if codes else "")
            yield Case(key, architecture, partial(op, dtype, *dims, rows, bias, codes), instructions)

    target, prefix = (_target_attention,), (_prefix_attention,)
    for dim in (64, 128, 256):
        yield from attention(torch.bfloat16, (dim, dim), 64)
    yield from attention(torch.bfloat16, (128, 128), 16)
    yield from attention(torch.bfloat16, (128, 128), 128)
    yield from attention(torch.bfloat16, (128, 128), 64, bias=True)
    yield from attention(torch.bfloat16, (128, 128), 64, codes=torch.int8, ops=target)
    yield from attention(torch.bfloat16, (128, 128), 64, codes=torch.float8_e4m3fn, ops=prefix)
    yield from attention(torch.float16, (64, 64), 64)
    yield from attention(torch.float32, (64, 64), 64)
    if architecture == 89:  # the instructions of 8.0, in less shared memory
        return
    for dim, rows in ((64, 16), (64, 128), (256, 16)):
        yield from attention(torch.bfloat16, (dim, dim), rows)
    for dim, rows in ((64, 16), (64, 64), (128, 128), (256, 64)):
        yield from attention(torch.bfloat16, (dim, dim), rows, bias=True, ops=prefix)
    yield from attention(torch.bfloat16, (48, 80), 64)
    yield from attention(torch.bfloat16, (64, 64), 16, codes=torch.int8)
    yield from attention(torch.float16, (64, 64), 64, bias=True)
    if architecture == 90:  # ptxas takes 15 s for it on 8.0
        yield from attention(torch.float32, (64, 64), 64, bias=True)
    yield from attention(torch.float32, (128, 128), 64)
    for dim in (64, 256):
        yield from attention(torch.float32, (dim, dim), 16)


def _linear_cases(architecture: int) -> Iterator[Case]:
    def projection(dtype: torch.dtype, rows: int, num_in: int, epilogue: str) -> Case:
        instructions: tuple[str, ...] = ()
        if dtype.itemsize == 2:
            block_m = configs.linear_rule(architecture, dtype.itemsize, rows).block_m
            product = "wgmma" if architecture >= 90 and block_m >= 64 else "mma.sync"
            instructions = (product, _ASYNC_COPY, *(["tanh.approx"] if epilogue == "silu" else []))
        key = f"{architecture} linear {_name(dtype)} rows{rows} in{num_in} {epilogue}"
        return Case(key, architecture, partial(_linear, dtype, rows, num_in, epilogue), instructions)

    for rows, epilogue in ((16, "silu"), (64, "residual"), (512, "silu"), (2048, "residual"), (2048, "silu")):
        yield projection(torch.bfloat16, rows, 512, epilogue)
    yield projection(torch.bfloat16, 2048, 80, "residual")
    yield projection(torch.float16, 2048, 512, "silu")
    yield projection(torch.float32, 16, 512, "residual")
    yield projection(torch.float32, 2048, 512, "silu")


def _small_cases(architecture: int) -> Iterator[Case]:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        start = f"{architecture} {{}} {_name(dtype)}"
        yield Case(start.format("target_bias"), architecture, partial(_target_bias, dtype))
        yield Case(start.format("layer_norm") + " 512", architecture, partial(_layer_norm, dtype, 512))
        yield Case(start.format("norm_gate") + " 512", architecture, partial(_norm_gate, dtype, 512, 1, False))
        for dims in ((64, 64), (256, 256)):
            key = start.format("kv_write") + " {}x{}".format(*dims)
            rows = configs.most_tile_rows(dtype.itemsize, dims[0])
            yield Case(key, architecture, partial(_kv_write, dtype, *dims, rows, None))
    yield Case(f"{architecture} page_copy", architecture, _page_copy)
    start, dtype = f"{architecture} {{}} bfloat16", torch.bfloat16
    yield Case(start.format("layer_norm") + " 80", architecture, partial(_layer_norm, dtype, 80))
    yield Case(
        start.format("norm_gate") + " 512 splits4 concat", architecture, partial(_norm_gate, dtype, 512, 4, True)
    )
    yield Case(start.format("kv_write") + " 48x80", architecture, partial(_kv_write, dtype, 48, 80, 16, None))
    for codes in (torch.int8, torch.float8_e4m3fn):
        key = start.format("kv_write") + f" 128x128 {_name(codes)}"
        yield Case(key, architecture, partial(_kv_write, dtype, 128, 128, 64, codes))


def _target_attention(
    dtype: torch.dtype, qk_dim: int, v_dim: int, rows: int, bias: bool, codes: torch.dtype | None
) -> None:
    (q, k, v), kv = _heads(dtype, qk_dim, v_dim), _pages(codes or dtype, qk_dim, v_dim)
    by_prefix = _empty(torch.float32, _NUM_HEADS, _NUM_PAGES * _PAGE_TOKENS) if bias else None
    own = _bias(dtype).own() if bias else None
    target_attention_parts(q, k, v, kv, _batch(rows), by_prefix, own, logit_scale=qk_dim**-0.5, norm=1024.0)


def _prefix_attention(
    dtype: torch.dtype, qk_dim: int, v_dim: int, rows: int, bias: bool, codes: torch.dtype | None
) -> None:
    q, kv = _heads(dtype, qk_dim, v_dim)[0], _pages(codes or dtype, qk_dim, v_dim)
    by_pair = _bias(dtype) if bias else None
    prefix_attention_parts(q, kv, _batch(rows), by_pair, logit_scale=qk_dim**-0.5, norm=1024.0)


def _kv_write(dtype: torch.dtype, qk_dim: int, v_dim: int, rows: int, codes: torch.dtype | None) -> None:
    _, k, v = _heads(dtype, qk_dim, v_dim)
    kv_write(k, v, _pages(codes or dtype, qk_dim, v_dim), _batch(rows))


def _target_bias(dtype: torch.dtype) -> None:
    target_bias(_pages(dtype, 64, 64), _batch(64), _empty(torch.int64, _SIZES.num_users), _bias(dtype))


def _linear(dtype: torch.dtype, rows: int, num_in: int, epilogue: str) -> None:
    num_out = 512
    x, weight, bias = _empty(dtype, rows, num_in), _empty(dtype, num_out, num_in), _empty(dtype, num_out)
    if epilogue == "silu":
        linear(x, weight, bias, num_silu=128)
    else:
        linear(x, weight, bias, _empty(dtype, rows, num_out))


def _layer_norm(dtype: torch.dtype, dim: int) -> None:
    layer_norm(_empty(dtype, _NUM_ROWS, dim), _empty(dtype, dim), _empty(dtype, dim), 1e-6)


def _norm_gate(dtype: torch.dtype, dim: int, splits: int, concat: bool) -> None:
    parts, u = _empty(torch.float32, splits, _NUM_ROWS, dim), _empty(dtype, _NUM_ROWS, 4 * dim)[:, :dim]
    norm_gate(parts, u, _empty(dtype, dim), _empty(dtype, dim), 1e-6, concat=concat)


def _page_copy() -> None:
    source, target = (_empty(torch.uint8, _NUM_PAGES, 1024) for _ in range(2))
    page_copy(source, target, _empty(torch.int32, _NUM_PAGES, 2), slice(0, 640))


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _heads(dtype: torch.dtype, qk_dim: int, v_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as they come out of one projection."""
    widths = [_NUM_HEADS * dim for dim in (v_dim, v_dim, qk_dim, qk_dim)]
    _, v, q, k = _empty(dtype, _NUM_ROWS, sum(widths)).split(widths, -1)
    return (
        q.unflatten(1, (_NUM_HEADS, qk_dim)),
        k.unflatten(1, (_NUM_HEADS, qk_dim)),
        v.unflatten(1, (_NUM_HEADS, v_dim)),
    )


def _pages(dtype: torch.dtype, qk_dim: int, v_dim: int) -> PagedKV:
    """A layer of pages that hold times and two layers."""
    tokens = (_NUM_HEADS, _PAGE_TOKENS)
    parts: list[tuple[torch.dtype, tuple[int, ...]]] = [
        (torch.int64, (_PAGE_TOKENS,)),
        *[(dtype, (*tokens, dim)) for dim in (qk_dim, v_dim)],
        *([(torch.float32, tokens)] * 2 if dtype.itemsize == 1 else []),
    ]
    sizes = [of.itemsize * math.prod(shape) for of, shape in parts]
    page = _empty(torch.uint8, _NUM_PAGES, 2 * sum(sizes))[:, : sum(sizes)]
    times, k, v, *scales = (
        part.view(of).unflatten(1, shape) for part, (of, shape) in zip(page.split(sizes, 1), parts, strict=True)
    )
    return PagedKV(k, v, times, *scales)


def _batch(tile_rows: int) -> Batch:
    return unpacked(_empty(torch.int32, _SIZES.num_numbers()), _SIZES, tile_rows)


def _bias(dtype: torch.dtype) -> RelativeBias:
    return RelativeBias(_empty(dtype, _NUM_HEADS, 1024), _empty(dtype, _NUM_HEADS, 65), _empty(torch.int64, 64))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def compiled(case: Case) -> Compiled:
    """One case through Triton, LLVM and ptxas."""
    caught: list[tuple[ASTSource, dict[str, int]]] = []

    def catch(*, fn: JitFunctionInfo, compile: Mapping[str, Any], **_: object) -> bool:
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        caught.append((source, {name: compile[name] for name in ("num_warps", "num_stages")}))
        return True  # leave it at that

    device = configs.Device("", case.architecture, 100)
    driver = _Driver(case.architecture)
    triton.runtime.driver.set_active(driver)
    knobs.compilation.disable_line_info = True
    with (
        mock.patch.object(knobs.runtime, "jit_cache_hook", catch),
        mock.patch.object(configs, "device", lambda _: device),
    ):
        case.call()
    ((source, options),) = caught
    built = triton.compile(source, target=driver.get_current_target(), options=options)
    lacks = tuple(name for name in case.instructions if name not in built.asm["ptx"])
    return Compiled(case.key, _figures(built.asm["cubin"], built.metadata.shared), lacks)


def all_compiled(wanted: Sequence[Case]) -> tuple[list[Compiled], list[str]]:
    """Several at a time. Where a process dies, what was left is compiled again one by one: the second are the keys of
    those whose process died again.
    """
    done: dict[str, Compiled] = {}
    with _pool(_PROCESSES) as pool:
        futures = {pool.submit(compiled, case): case.key for case in wanted}
        for future in as_completed(futures):
            error = future.exception()
            if error is None:
                done[futures[future]] = future.result()
            elif not isinstance(error, BrokenProcessPool):
                pool.shutdown(cancel_futures=True)
                raise RuntimeError(f"{futures[future]}: does not compile") from error
    lost = []
    for case in wanted:
        if case.key not in done:
            print(f"{case.key}: again, as a compiler died", file=sys.stderr)
            try:
                with _pool(1) as pool:
                    done[case.key] = pool.submit(compiled, case).result()
            except BrokenProcessPool:
                lost.append(case.key)
    return list(done.values()), lost


def _pool(num_processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"))


def _figures(cubin: bytes, shared: int) -> Figures:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    static = max(0, usage["SHARED"] - _RESERVED)
    return Figures(usage["REG"], usage["STACK"] + usage["LOCAL"], shared + static)


def granted(figures: Figures) -> Figures:
    """The limits to write for these figures: registers up to the next multiple of 8, in which they are given out."""
    return Figures(-(-figures.registers // 8) * 8, figures.spilled, figures.shared)


def failures(found: Mapping[str, Figures], limits: Mapping[str, Figures]) -> list[str]:
    """What is wrong with the figures of all cases, each in a line. Keys begin with the architecture."""
    wrong = [f"{key}: in {LIMITS.name}, but no case" for key in limits.keys() - found.keys()]
    for key, figures in found.items():
        most = 1024 * configs.SHARED_KIB[int(key.split()[0])]
        if figures.shared > most:
            wrong.append(f"{key}: shared {figures.shared} > {most}, all that the architecture has")
        if key not in limits:
            wrong.append(f"{key}: not in {LIMITS.name}")
            continue
        wrong += [
            f"{key}: {name} {getattr(figures, name)} > {getattr(limits[key], name)}"
            for name in ("registers", "spilled", "shared")
            if getattr(figures, name) > getattr(limits[key], name)
        ]
    return sorted(wrong)


def read_limits() -> dict[str, Figures]:
    """The committed limits, by case."""
    return {key: Figures(*values) for key, values in json.loads(LIMITS.read_text()).items()}


def write_limits(limits: Mapping[str, Figures]) -> None:
    """One case a line: registers, spilled bytes, shared bytes."""
    lines = [f"{json.dumps(key)}:{json.dumps(astuple(limits[key]), separators=(',', ':'))}" for key in sorted(limits)]
    LIMITS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    """Compile, and check or write; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description="Compile every GPU kernel ahead of time and check what it needs.")
    parser.add_argument("--architecture", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--write", action="store_true", help=f"write {LIMITS.name} instead of checking against it")
    parser.add_argument("--json", action="store_true", help="print the figures of every case as JSON")
    arguments = parser.parse_args()
    if interpreted():
        print("triton interprets kernels here: unset TRITON_INTERPRET to compile them", file=sys.stderr)
        return 1
    wanted = [case for architecture in arguments.architecture for case in cases(architecture)]
    results, lost = all_compiled(wanted)
    found = {result.key: result.figures for result in results}
    if arguments.json:
        print(json.dumps({key: astuple(figures) for key, figures in found.items()}, indent=0))
    wrong = [f"{key}: its compiler died" for key in lost]
    wrong += [f"{result.key}: no {name} in its PTX" for result in results for name in result.lacks]
    known = read_limits() if LIMITS.is_file() else {}
    own = {key: limit for key, limit in known.items() if int(key.split()[0]) in arguments.architecture}
    if arguments.write:
        own = {key: granted(figures) for key, figures in found.items()}
        others = {key: limit for key, limit in known.items() if int(key.split()[0]) not in arguments.architecture}
        write_limits(others | own)
    wrong += failures(found, own)
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(found)} cases, {len(wrong)} failures, triton {triton.__version__}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
