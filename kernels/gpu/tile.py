"""What several kernels do: which tile is a program's; SiLU, products, codes to numbers, time buckets."""

import triton
import triton.language as tl

PLAIN = 0
INT8 = 1
FP8 = 2
"""How K and V stand on pages: numbers, 8-bit integers, or the bits of float8 e4m3; the last two with scales."""


@triton.jit
def tile_by_tile(program, num_splits, NUM_HEADS: tl.constexpr):
    """Tile, head and split of a program: all of a tile before the next, so programs start in the order of tiles."""
    return program // (NUM_HEADS * num_splits), program // num_splits % NUM_HEADS, program % num_splits


@triton.jit
def seen_blocks(near, reach_first, n, split, num_splits, BLOCK_N: tl.constexpr):
    """What a split attends to where queries see the keys before `reach_first`, and those from `near` to n: two ranges
    of keys that begin at a block, of which the second may be cut in its first and last block.
    """
    near_block = near // BLOCK_N
    head_blocks = tl.minimum(tl.cdiv(reach_first, BLOCK_N), near_block)
    blocks = tl.cdiv(head_blocks + tl.cdiv(n, BLOCK_N) - near_block, num_splits)
    first = split * blocks
    last = first + blocks
    skipped = near_block - head_blocks
    start = tl.minimum((tl.maximum(first, head_blocks) + skipped) * BLOCK_N, n)
    stop = tl.minimum((tl.maximum(last, head_blocks) + skipped) * BLOCK_N, n)
    return tl.minimum(first, head_blocks) * BLOCK_N, tl.minimum(last, head_blocks) * BLOCK_N, start, stop


@triton.jit
def silu(x, FAST: tl.constexpr):
    """x * sigmoid(x). FAST: by the unit's tanh, one special-function instruction instead of two, off by 2**-12 of |x|
    at most.
    """
    if FAST:
        half = 0.5 * x
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return half + half * tanh
    return x / (1.0 + tl.exp(-x))


@triton.jit
def product(a, b, acc, UPCAST: tl.constexpr):
    """a @ b + acc in acc's type. UPCAST: for the interpreter, whose products of bfloat16 are wrong."""
    if UPCAST:
        a = a.to(acc.dtype)
        b = b.to(acc.dtype)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)


@triton.jit
def decoded(codes, CODES: tl.constexpr, DTYPE: tl.constexpr, UPCAST: tl.constexpr):
    """Codes as numbers, before their scales; exact in every type of 8 bits of mantissa or more, and in float16.

    UPCAST: for the interpreter, whose bfloat16 of an integer is wrong.
    """
    if CODES == 2:  # e4m3 in float16's place: exponents are 8 apart
        bits = codes.to(tl.int16)
        magnitude = ((bits & 0x7F) << 7).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        return tl.where(bits > 127, -magnitude, magnitude).to(DTYPE)
    if UPCAST and CODES:
        codes = codes.to(tl.float32)
    return codes.to(DTYPE)


@triton.jit
def encoded(x, CODES: tl.constexpr):
    """float32 within the largest code as codes, rounded to nearest, ties to even."""
    magnitude = tl.abs(x)
    if CODES == 2:
        bits = magnitude.to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # Below the least normal number, 2**-6, codes are multiples of 2**-9: what float32 rounds to beside 2**14.
        small = (magnitude + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        code = tl.where(magnitude < 0.015625, small, normal)
        return tl.where(x.to(tl.int32, bitcast=True) < 0, code + 128, code).to(tl.uint8)
    else:  # beside 1.5 * 2**23 float32 has no fractions
        return ((x + 12582912.0) - 12582912.0).to(tl.int8)


@triton.jit
def time_bucket(difference, THRESHOLDS, num_buckets, STEPS: tl.constexpr):
    """Number of thresholds that are at most the difference, by bisection: STEPS halvings are enough for all of them.

    difference: int64, any shape. THRESHOLDS: int64 [num_buckets], ascending.
    """
    low = tl.zeros_like(difference).to(tl.int32)
    high = low + num_buckets
    for _ in tl.static_range(STEPS):
        middle = (low + high) >> 1
        open_ = low < high
        reached = open_ & (tl.load(THRESHOLDS + middle, mask=open_, other=0) <= difference)
        low = tl.where(reached, middle + 1, low)
        high = tl.where(open_ & (reached == 0), middle, high)
    return low
