"""What one program of attention does on Hopper: a warp fetches tiles of keys and values, two warpgroups consume them.

The structure is FlashAttention-3's: copies by the tensor memory accelerator into a ring of buffers, and the product of
the next tile's logits beside the SiLU of this one and its product with the values. Tiles are taken from the last to the
first, as only the last ones need a mask.

Every buffer has two barriers: `full`, at which its copy arrives, and `empty`, at which both consumers arrive once they
have read it. The n-th use of a buffer waits for phase n of them. `tests/kernels/hopper_machine.py` runs this very code
without a device.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
)

CONSUMERS = gl.constexpr(2)
"""Warpgroups that compute, of 64 rows each."""
ROWS = gl.constexpr(64)


@gluon.jit
def silu_of_double(half):
    """x * sigmoid(x) of x = 2 * half, by the unit's tanh; as `kernels.gpu.tile.silu` does it where it is fast."""
    tanh = gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=gl.float32, is_pure=True, pack=1)
    return half + half * tanh


@gluon.jit
def tile_end(index, start, stop, tiles, BLOCK_N: gl.constexpr):
    """End of the index-th tile in the order of work, whose last one is taken first and ends with the prefix. It may
    begin before `start`: what stands there is fetched, or is zero before its page, and weighs nothing.
    """
    return gl.minimum(start + (tiles - index) * BLOCK_N, stop)


@gluon.jit
def allocate(K, V, Q, STAGES: gl.constexpr):
    """Buffers and barriers: q, k, v; q_full, k_full, k_empty, v_full, v_empty."""
    q = gl.allocate_shared_memory(Q.dtype, [CONSUMERS, ROWS, 1, Q.block_type.shape[2]], Q.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full.index(0), 1)
    k, v, k_full, k_empty, v_full, v_empty = allocate_ring(K, V, STAGES)
    fence_async_shared()
    return q, k, v, q_full, k_full, k_empty, v_full, v_empty


@gluon.jit
def allocate_ring(K, V, STAGES: gl.constexpr):
    """Of tiles of pages, buffers and barriers: k, v, k_full, k_empty, v_full, v_empty. A fence must follow."""
    k = gl.allocate_shared_memory(K.dtype, [STAGES, 1, 1, K.block_type.shape[2], K.block_type.shape[3]], K.layout)
    v = gl.allocate_shared_memory(V.dtype, [STAGES, 1, 1, V.block_type.shape[2], V.block_type.shape[3]], V.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), 1)
        mbarrier.init(v_full.index(stage), 1)
        mbarrier.init(k_empty.index(stage), CONSUMERS)
        mbarrier.init(v_empty.index(stage), CONSUMERS)
    return k, v, k_full, k_empty, v_full, v_empty


@gluon.jit
def produce(
    Q, K, V, PAGES, q, k, v, q_full, k_full, k_empty, v_full, v_empty, head, first_row, start, stop, tiles,
    PAGE: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """The warp that fetches: queries first_row onwards, then the tiles of keys and values of the tokens [start, stop).

    Q: [num_rows, num_heads, qk_dim], K, V: [num_pages, num_heads, PAGE, head_dim], descriptors. PAGES: the user's.
    """
    if tiles > 0:
        mbarrier.expect(q_full.index(0), CONSUMERS * Q.block_type.nbytes)
        for group in gl.static_range(CONSUMERS):
            tma.async_copy_global_to_shared(Q, [first_row + group * ROWS, head, 0], q_full.index(0), q.index(group))
    for index in range(tiles):
        end = tile_end(index, start, stop, tiles, BLOCK_N)
        in_order = (end - 1) // PAGE
        page = gl.load(PAGES + in_order)
        slot = end - BLOCK_N - in_order * PAGE
        stage = index % STAGES
        free = ((index // STAGES) & 1) ^ 1
        mbarrier.wait(k_empty.index(stage), free)
        mbarrier.expect(k_full.index(stage), K.block_type.nbytes)
        tma.async_copy_global_to_shared(K, [page, head, slot, 0], k_full.index(stage), k.index(stage))
        mbarrier.wait(v_empty.index(stage), free)
        mbarrier.expect(v_full.index(stage), V.block_type.nbytes)
        tma.async_copy_global_to_shared(V, [page, head, slot, 0], v_full.index(stage), v.index(stage))


@gluon.jit
def begin_logits(q, k, k_full, index, zeros, BLOCK_N: gl.constexpr, STAGES: gl.constexpr):
    """Start q @ k of the index-th tile once it is there."""
    stage = index % STAGES
    mbarrier.wait(k_full.index(stage), (index // STAGES) & 1)
    keys = k.index(stage).reshape([BLOCK_N, q.shape[1]])
    return warpgroup_mma(q, keys.permute([1, 0]), zeros, use_acc=False, is_async=True)


@gluon.jit
def begin_sum(weights, v, v_full, index, acc, BLOCK_N: gl.constexpr, STAGES: gl.constexpr):
    """Start acc + weights @ v of the index-th tile once it is there."""
    stage = index % STAGES
    mbarrier.wait(v_full.index(stage), (index // STAGES) & 1)
    values = v.index(stage).reshape([BLOCK_N, acc.shape[1]])
    return warpgroup_mma(weights, values, acc, is_async=True)


@gluon.jit
def stay_before_wait(v_full, index, STAGES: gl.constexpr):
    """Keep what was computed before from sinking behind the wait for a product, where it would run beside nothing: the
    assembler moves it there, but not across a branch, and to wait again for what has come is little more than one.
    """
    mbarrier.wait(v_full.index(index % STAGES), (index // STAGES) & 1)
