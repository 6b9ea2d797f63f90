"""What the gate compiles (`kernels.gpu.aot`): the ops called as production calls them, on tensors without memory.

tests/conftest.py holds that tests of the server launch nothing that is no case here.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from kernels.bias import RelativeBias
from kernels.gpu import configs, softmax_attention
from kernels.gpu.hopper.fp8_target_attention import target_attention_parts as fp8_target_attention_parts
from kernels.gpu.hopper.launch import DTYPES, HEAD_DIMS
from kernels.gpu.hopper.prefix_attention import prefix_attention_parts as hopper_prefix_attention_parts
from kernels.gpu.hopper.target_attention import target_attention_parts as hopper_target_attention_parts
from kernels.gpu.kv_write import kv_write
from kernels.gpu.linear import linear
from kernels.gpu.norms import layer_norm, norm_gate
from kernels.gpu.page_copy import page_copy
from kernels.gpu.prefix_attention import prefix_attention_parts
from kernels.gpu.rotary import rotate
from kernels.gpu.shared_table import shared_rows
from kernels.gpu.target_attention import target_attention_parts
from kernels.gpu.target_bias import target_bias
from kernels.paged import Batch, BatchSizes, PagedKV, unpacked
from kernels.reach import Reach
from kernels.shared_table import HASHES, Hash, SharedTable

ARCHITECTURES = (80, 89, 90)
_NUM_HEADS, _PAGE_TOKENS, _NUM_PAGES, _NUM_ROWS = 4, 128, 64, 333
_REACH = Reach(256, 1024, 16)
_SIZES = BatchSizes(num_users=5, num_pages=_NUM_PAGES, num_tiles=9)
WGMMA, MMA, TANH, ASYNC_COPY = "HGMMA", "HMMA", "MUFU.TANH", "LDGSTS.E.BYPASS"
TMA, SET_REGISTERS, FP8_WGMMA = "UTMALDG", "USETMAXREG", "F32.E4M3.E4M3"
"""Machine instructions: products of a warpgroup and of a warp, the unit's tanh, 16 bytes from global to shared memory
past the registers; tiles that a descriptor names, registers handed from warps to others, and products of float8.
"""
SELF_CHECK_DIMS, SOFTMAX_SELF_CHECK_DIMS = (11, 18), (10, 18)
"""Heads of `kernels.sample_stack`, which every server computes before it computes anything else."""
CODES = (None, torch.int8, torch.float8_e4m3fn)


@dataclass(frozen=True, slots=True)
class Case:
    """One specialisation of one kernel. call: the op, with its arguments. instructions: what its machine code must
    have.
    """

    key: str
    architecture: int
    call: Callable[[], object]
    instructions: tuple[str, ...] = ()


def cases(architecture: int) -> list[Case]:
    """All of an architecture."""
    found = [
        *_attention_cases(architecture),
        *_softmax_cases(architecture),
        *_hopper_cases(architecture),
        *_linear_cases(architecture),
        *_small_cases(architecture),
    ]
    return list({case.key: case for case in found}.values())


def _attention_cases(architecture: int) -> Iterator[Case]:
    def attention(
        dtype: torch.dtype,
        dims: tuple[int, int],
        rows: int,
        *,
        bias: bool = False,
        codes: torch.dtype | None = None,
        transposed: bool = False,
        reach: bool = False,
        ops: tuple[Callable[..., None], ...] = (_target_attention, _prefix_attention),
    ) -> Iterator[Case]:
        for op in ops:
            multiply = WGMMA if architecture >= 90 and rows >= 64 else MMA
            whole = codes is None and dims != SELF_CHECK_DIMS  # a row of pages is a multiple of 16 bytes
            instructions = (multiply, TANH, *([ASYNC_COPY] if whole else [])) if dtype.itemsize == 2 else ()
            key = f"{architecture} {op.__name__[1:]} {_name(dtype)} {dims[0]}x{dims[1]} rows{rows}"
            key += (" bias" if bias else "") + (f" {_name(codes)}" if codes else "")
            key += (" transposed" if transposed else "") + (" reach" if reach else "")
            call = partial(op, dtype, *dims, rows, bias, codes, transposed=transposed, reach=reach)
            yield Case(key, architecture, call, instructions)

    target, prefix = (_target_attention,), (_prefix_attention,)
    bfloat16, float16, float32 = torch.bfloat16, torch.float16, torch.float32
    for dim in (64, 128, 256):
        yield from attention(bfloat16, (dim, dim), 64)
    yield from attention(bfloat16, (128, 128), 16)
    yield from attention(bfloat16, (128, 128), 128)
    yield from attention(bfloat16, (128, 128), 64, bias=True)
    yield from attention(bfloat16, (128, 128), 64, codes=torch.int8, ops=target)
    yield from attention(bfloat16, (128, 128), 64, codes=torch.float8_e4m3fn, ops=prefix)
    yield from attention(bfloat16, (128, 128), 64, codes=torch.float8_e4m3fn, transposed=True)
    yield from attention(float16, (64, 64), 64)
    yield from attention(float32, (64, 64), 64)
    yield from attention(bfloat16, (128, 128), 64 if architecture == 89 else 128, bias=True, reach=True)
    if architecture == 89:  # the instructions of 8.0, in less shared memory
        return
    # Every choice that a kernel has, in every height of its tile; on 8.0 in the highest, which takes most.
    for rows, bias, codes in product((16, 64, 128) if architecture == 90 else (128,), (False, True), CODES):
        yield from attention(bfloat16, (128, 128), rows, bias=bias, codes=codes)
        if codes == torch.float8_e4m3fn:
            yield from attention(bfloat16, (128, 128), rows, bias=bias, codes=codes, transposed=True)
    if architecture == 90:
        yield from attention(bfloat16, SELF_CHECK_DIMS, 128, bias=True)
        yield from attention(bfloat16, SELF_CHECK_DIMS, 128, bias=True, reach=True)
        for rows, bias in product((16, 64, 128), (False, True)):
            yield from attention(bfloat16, (128, 128), rows, bias=bias, reach=True)
        for codes, transposed in ((torch.int8, False), (torch.float8_e4m3fn, False), (torch.float8_e4m3fn, True)):
            yield from attention(bfloat16, (128, 128), 128, bias=True, codes=codes, transposed=transposed, reach=True)
        yield from attention(float32, (64, 64), 64, bias=True, reach=True)
    for dim, rows in ((64, 16), (64, 128), (256, 16)):
        yield from attention(bfloat16, (dim, dim), rows)
    for dim, rows in ((64, 16), (64, 64), (256, 64)):
        yield from attention(bfloat16, (dim, dim), rows, bias=True, ops=prefix)
    yield from attention(bfloat16, (48, 80), 64)
    yield from attention(bfloat16, (64, 64), 16, codes=torch.int8)
    yield from attention(float16, (64, 64), 64, bias=True)
    if architecture == 90:  # ptxas takes 15 s for it on 8.0
        yield from attention(float32, (64, 64), 64, bias=True)
    yield from attention(float32, (128, 128), 64)
    for dim in (64, 256):
        yield from attention(float32, (dim, dim), 16)


def _softmax_cases(architecture: int) -> Iterator[Case]:
    """Rotary positions too: they come together, and so do their self-checks."""
    bfloat16, float32 = torch.bfloat16, torch.float32
    some: list[tuple[tuple[int, int], torch.dtype, int, bool, torch.dtype | None]]
    some = [((128, 128), bfloat16, 64, False, None)]
    if architecture == 90:
        some += [((128, 128), bfloat16, rows, True, None) for rows in (16, 64, 128)]
        some += [((128, 128), bfloat16, 64, False, torch.int8)]
        some += [(SOFTMAX_SELF_CHECK_DIMS, bfloat16, 64, True, None), ((64, 64), float32, 64, True, None)]
    for op in (_target_attention, _prefix_attention):
        for dims, dtype, rows, bias, codes in some:
            key = f"{architecture} softmax {op.__name__[1:]} {_name(dtype)} {dims[0]}x{dims[1]} rows{rows}"
            key += (" bias" if bias else "") + (f" {_name(codes)}" if codes else "")
            yield Case(key, architecture, partial(op, dtype, *dims, rows, bias, codes, softmax=True))
    for rows, of_targets in product((16, 64, 128) if architecture == 90 else (64,), (False, True)):
        key = f"{architecture} rotate bfloat16 128 rows{rows}" + (" targets" if of_targets else "")
        yield Case(key, architecture, partial(_rotate, bfloat16, rows, of_targets=of_targets))


def _hopper_cases(architecture: int) -> Iterator[Case]:
    if architecture != 90:
        return
    instructions = (WGMMA, TANH, TMA, SET_REGISTERS)
    for op, dtype, dims, bias in product((_target_attention, _prefix_attention), DTYPES, HEAD_DIMS, (False, True)):
        key = f"90 hopper {op.__name__[1:]} {_name(dtype)} {dims[0]}x{dims[1]}" + (" bias" if bias else "")
        yield Case(key, 90, partial(op, dtype, *dims, 128, bias, None, hopper=True), instructions)
    instructions, fp8 = (FP8_WGMMA, TANH, TMA, SET_REGISTERS), torch.float8_e4m3fn
    for dtype, dims, bias in product(DTYPES, HEAD_DIMS, (False, True)):
        key = (
            f"90 hopper target_attention {_name(dtype)} {dims[0]}x{dims[1]}"
            + (" bias" if bias else "")
            + " fp8 products"
        )
        call = partial(_target_attention, dtype, *dims, 128, bias, fp8, hopper=True, transposed=True)
        yield Case(key, 90, call, instructions)


def _linear_cases(architecture: int) -> Iterator[Case]:
    def projection(dtype: torch.dtype, rows: int, num_in: int, epilogue: str, *, bias: bool = True) -> Case:
        instructions: tuple[str, ...] = ()
        if dtype.itemsize == 2:
            block_m = configs.linear_rule(architecture, dtype.itemsize, rows).block_m
            multiply = WGMMA if architecture >= 90 and block_m >= 64 else MMA
            instructions = (multiply, ASYNC_COPY, *([TANH] if epilogue == "silu" else []))
        key = f"{architecture} linear {_name(dtype)} rows{rows} in{num_in} {epilogue}" + ("" if bias else " plain")
        return Case(key, architecture, partial(_linear, dtype, rows, num_in, epilogue, bias), instructions)

    for rows, epilogue in ((16, "silu"), (64, "residual"), (512, "silu"), (2048, "residual"), (2048, "silu")):
        yield projection(torch.bfloat16, rows, 512, epilogue)
    yield projection(torch.bfloat16, 2048, 80, "residual")
    yield projection(torch.float16, 2048, 512, "silu")
    yield projection(torch.float32, 16, 512, "residual")
    yield projection(torch.float32, 2048, 512, "silu")
    if architecture < 90:
        return
    for epilogue, bias in product(("silu", "residual", "none"), (False, True)):
        yield projection(torch.bfloat16, 2048, 512, epilogue, bias=bias)


def _small_cases(architecture: int) -> Iterator[Case]:
    def small(op: str, dtype: torch.dtype, detail: str, call: Callable[[], object]) -> Case:
        return Case(f"{architecture} {op} {_name(dtype)} {detail}".rstrip(), architecture, call)

    bfloat16 = torch.bfloat16
    for dtype, hash_name in product((bfloat16, torch.float16, torch.float32), HASHES):
        yield small("shared_rows", dtype, hash_name, partial(_shared_rows, dtype, hash_name))
    for dtype in (bfloat16, torch.float16, torch.float32):
        yield small("target_bias", dtype, "", partial(_target_bias, dtype))
        yield small("layer_norm", dtype, "512", partial(_layer_norm, dtype, 512))
        yield small("norm_gate", dtype, "512", partial(_norm_gate, dtype, 512, 1, False))
        for dim in (64, 256):
            rows = configs.most_tile_rows(dtype.itemsize, dim)
            yield small("kv_write", dtype, f"{dim}x{dim} rows{rows}", partial(_kv_write, dtype, dim, dim, rows, None))
    yield Case(f"{architecture} page_copy", architecture, _page_copy)
    yield small("layer_norm", bfloat16, "80", partial(_layer_norm, bfloat16, 80))
    yield small("norm_gate", bfloat16, "512 splits4 concat", partial(_norm_gate, bfloat16, 512, 4, True))
    few = partial(_norm_gate, bfloat16, 512, 16, True, rows=256)
    yield small("norm_gate", bfloat16, "512 splits16 concat rows256", few)
    yield small("kv_write", bfloat16, "48x80 rows16", partial(_kv_write, bfloat16, 48, 80, 16, None))
    for bits in (torch.int8, torch.float8_e4m3fn):
        call = partial(_kv_write, bfloat16, 128, 128, 64, bits)
        yield small("kv_write", bfloat16, f"128x128 rows64 {_name(bits)}", call)
    call = partial(_kv_write, bfloat16, 128, 128, 64, torch.float8_e4m3fn, transposed=True)
    yield small("kv_write", bfloat16, "128x128 rows64 float8_e4m3fn transposed", call)
    if architecture < 90:
        return
    call = partial(_kv_write, bfloat16, 128, 128, 128, torch.float8_e4m3fn, transposed=True)
    yield small("kv_write", bfloat16, "128x128 rows128 float8_e4m3fn transposed", call)
    # Every choice that a kernel has.
    yield small("layer_norm", bfloat16, "512 plain", partial(_layer_norm, bfloat16, 512, affine=False))
    for affine, concat, rows in product((False, True), (False, True), (2048, 256)):
        detail = "512" + ("" if affine else " plain") + (" concat" if concat else "")
        detail += " rows256" if rows == 256 else ""
        call = partial(_norm_gate, bfloat16, 512, 1, concat, rows=rows, affine=affine)
        yield small("norm_gate", bfloat16, detail, call)
    for rows, codes in product((16, 64, 128), CODES):
        detail = f"64x64 rows{rows}" + (f" {_name(codes)}" if codes else "")
        yield small("kv_write", bfloat16, detail, partial(_kv_write, bfloat16, 64, 64, rows, codes))
        if codes == torch.float8_e4m3fn:
            call = partial(_kv_write, bfloat16, 64, 64, rows, codes, transposed=True)
            yield small("kv_write", bfloat16, f"{detail} transposed", call)


def _target_attention(
    dtype: torch.dtype,
    qk_dim: int,
    v_dim: int,
    rows: int,
    bias: bool,
    codes: torch.dtype | None,
    hopper: bool = False,
    transposed: bool = False,
    reach: bool = False,
    softmax: bool = False,
) -> None:
    of_hopper = fp8_target_attention_parts if codes else hopper_target_attention_parts
    plain = softmax_attention.target_attention_parts if softmax else target_attention_parts
    op = of_hopper if hopper else plain
    (q, k, v), kv = _heads(dtype, qk_dim, v_dim), _pages(codes or dtype, qk_dim, v_dim, transposed=transposed)
    by_prefix = _empty(torch.float32, _NUM_HEADS, _NUM_PAGES * _PAGE_TOKENS) if bias else None
    own = _bias(dtype).own() if bias else None
    form = {} if hopper or softmax else {"reach": _REACH if reach else None}
    op(q, k, v, kv, _batch(rows), by_prefix, own, logit_scale=qk_dim**-0.5, norm=1024.0, **form)


def _prefix_attention(
    dtype: torch.dtype,
    qk_dim: int,
    v_dim: int,
    rows: int,
    bias: bool,
    codes: torch.dtype | None,
    hopper: bool = False,
    transposed: bool = False,
    reach: bool = False,
    softmax: bool = False,
) -> None:
    plain = softmax_attention.prefix_attention_parts if softmax else prefix_attention_parts
    op = hopper_prefix_attention_parts if hopper else plain
    q, kv = _heads(dtype, qk_dim, v_dim)[0], _pages(codes or dtype, qk_dim, v_dim, transposed=transposed)
    by_pair = _bias(dtype) if bias else None
    form = {} if hopper or softmax else {"reach": _REACH if reach else None}
    op(q, kv, _batch(rows), by_pair, logit_scale=qk_dim**-0.5, norm=1024.0, **form)


def _rotate(dtype: torch.dtype, rows: int, *, of_targets: bool) -> None:
    q, _, _ = _heads(dtype, 128, 128)
    rotate(q, _batch(rows), _empty(torch.float64, 64), of_targets=of_targets)


def _kv_write(
    dtype: torch.dtype, qk_dim: int, v_dim: int, rows: int, codes: torch.dtype | None, *, transposed: bool = False
) -> None:
    _, k, v = _heads(dtype, qk_dim, v_dim)
    kv_write(k, v, _pages(codes or dtype, qk_dim, v_dim, transposed=transposed), _batch(rows))


def _target_bias(dtype: torch.dtype) -> None:
    target_bias(_pages(dtype, 64, 64), _batch(64), _empty(torch.int64, _SIZES.num_users), _bias(dtype))


def _linear(dtype: torch.dtype, rows: int, num_in: int, epilogue: str, bias: bool) -> None:
    num_out = 512
    x, weight = _empty(dtype, rows, num_in), _empty(dtype, num_out, num_in)
    residual = _empty(dtype, rows, num_out) if epilogue == "residual" else None
    linear(x, weight, _empty(dtype, num_out) if bias else None, residual, num_silu=128 if epilogue == "silu" else 0)


def _layer_norm(dtype: torch.dtype, dim: int, *, affine: bool = True) -> None:
    layer_norm(_empty(dtype, _NUM_ROWS, dim), *_affine(dtype, dim, affine), 1e-6)


def _norm_gate(
    dtype: torch.dtype, dim: int, splits: int, concat: bool, *, rows: int = 2048, affine: bool = True
) -> None:
    parts, u = _empty(torch.float32, splits, rows, dim), _empty(dtype, rows, 4 * dim)[:, :dim]
    norm_gate(parts, u, *_affine(dtype, dim, affine), 1e-6, concat=concat)


def _affine(dtype: torch.dtype, dim: int, affine: bool) -> tuple[Tensor | None, Tensor | None]:
    return (_empty(dtype, dim), _empty(dtype, dim)) if affine else (None, None)


def _page_copy() -> None:
    source, target = (_empty(torch.uint8, _NUM_PAGES, 1024) for _ in range(2))
    page_copy(source, target, _empty(torch.int32, _NUM_PAGES, 2), slice(0, 640))


def _shared_rows(dtype: torch.dtype, hash_name: Hash) -> None:
    table = SharedTable(hash_name, 2_500_000, 128, 32)
    shared_rows(_empty(dtype, table.num_numbers), table, _empty(torch.int64, _NUM_ROWS))


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


def _pages(dtype: torch.dtype, qk_dim: int, v_dim: int, *, transposed: bool = False) -> PagedKV:
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
    if transposed:
        v = v.as_strided(v.shape, (*v.stride()[:2], 1, _PAGE_TOKENS))
    return PagedKV(k, v, times, *scales)


def _batch(tile_rows: int) -> Batch:
    return unpacked(_empty(torch.int32, _SIZES.num_numbers()), _SIZES, tile_rows)


def _bias(dtype: torch.dtype) -> RelativeBias:
    return RelativeBias(_empty(dtype, _NUM_HEADS, 1024), _empty(dtype, _NUM_HEADS, 65), _empty(torch.int64, 64))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
