"""On a CUDA device: what Triton's interpreter cannot show. Laws, Meta's outputs, graphs, copies that overlap, SiLU's
tanh, payloads through pinned memory.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from safetensors.torch import load_file
from torch import Tensor

from kernels.gpu.shared_table import shared_rows
from kernels.gpu.tile import silu
from kernels.shared_table import HASHES, Hash, SharedTable, lookup
from loadtest.bench.gpu_worlds import BOUNDS, DLRM_V3, NVIDIA, Scenario, World
from mfalcon.backends.base import StackBackend
from mfalcon.backends.triton import TritonBackend
from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.kvcache.codec import decode, encode
from mfalcon.kvcache.copy import CudaCopier
from mfalcon.kvcache.state import PAGE_TOKENS, KVPool, KVShape, KVState, PlainLayout
from mfalcon.laws import check
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_layers import LayerConfig
from mfalcon.models.layer import Stack
from tests.small import small_checkpoint, small_config, small_embedding

CUDA = torch.device("cuda")
LAYERS, DIM, HEADS, HEAD_DIM, NORM = 2, 48, 3, 16, 64  # of tests/golden
V3_BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
"""Of the largest output: other sums; 8 bits through two layers."""

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "fp8", "fp8-products"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["dfgr", "hstu"])
def test_laws(architecture: str, dtype: torch.dtype, kv_dtype: str) -> None:
    checkpoint = small_checkpoint(architecture, torch.float32)
    checkpoint.model.to(CUDA)
    checkpoint.model.cast(dtype)
    broken = [law for law in check(checkpoint, backend="triton", kv_dtype=kv_dtype) if not law.holds]
    assert not broken


@pytest.mark.parametrize(
    "config", [small_config("lum"), small_config(embedding=small_embedding())], ids=["lum", "robe"]
)
def test_laws_of_conditions_and_shared_tables(config: RankerConfig) -> None:
    checkpoint = small_checkpoint(config.architecture, torch.float32, config=config)
    checkpoint.model.to(CUDA)
    checkpoint.model.cast(torch.bfloat16)
    assert not [law for law in check(checkpoint, backend="triton") if not law.holds]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HASHES)
def test_rows_of_a_shared_table_equal_their_definition(name: Hash, dtype: torch.dtype) -> None:
    """Of 10 MB, for any key of 64 bits."""
    table = SharedTable(name, 2_500_000, 128, 32)
    memory = torch.randn(table.num_numbers).to(dtype)
    keys = torch.randint(-(1 << 63), (1 << 63) - 1, (20_000,))
    found = shared_rows(memory.to(CUDA), table, keys.to(CUDA), 77)
    assert torch.equal(found.cpu(), lookup(memory, table, keys, 77))


@pytest.mark.parametrize("cuts", [(37,), (1, 37), (20, 21, 37)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_v3_layers_give_meta_s_outputs(dtype: torch.dtype, cuts: tuple[int, ...]) -> None:
    golden = load_file(Path(__file__).parents[1] / "golden" / "meta_hstu.safetensors")
    config = LayerConfig(
        dim=DIM,
        num_heads=HEADS,
        qk_dim=HEAD_DIM,
        v_dim=HEAD_DIM,
        attention_norm=NORM,
        activation="u",
        output="concat",
        output_bias=False,
    )
    stack = Stack(config, LAYERS).double().requires_grad_(False)
    names = {
        "norm_in.weight": "input_norm_weight",
        "norm_in.bias": "input_norm_bias",
        "norm_out.weight": "output_norm_weight",
        "norm_out.bias": "output_norm_bias",
        "uvqk.bias": "uvqk_beta",
    }
    for index, layer in enumerate(stack.layers):
        of_layer = f"v3.layer{index}."
        for ours, theirs in names.items():
            layer.get_parameter(ours).copy_(golden[of_layer + theirs])
        layer.get_parameter("uvqk.weight").copy_(golden[of_layer + "uvqk_weight"].T)
        layer.get_parameter("output.weight").copy_(golden[of_layer + "output_weight"].T)
    stack.to(CUDA, dtype)
    history, candidates = (golden[f"v3.{name}"].to(CUDA, dtype) for name in ("history", "candidates"))
    with torch.inference_mode():
        backend = TritonBackend(stack, KVShape(LAYERS, HEADS, HEAD_DIM, HEAD_DIM, dtype, CUDA))
        state, start = KVPool(backend.layout, 2).empty(), 0
        for stop in cuts:
            state = state.extend(torch.zeros(stop - start, dtype=torch.int64, device=CUDA))
            backend.encode([state], history[start:stop], [stop - start])
            start = stop
        out = backend.hidden([state], candidates, [len(candidates)], [0], 4).cpu().double()
    expected = golden["v3.candidate_outputs"].double()
    assert float((out - expected).abs().max() / expected.abs().max()) <= V3_BOUNDS[dtype]


@pytest.mark.parametrize("spec", [DLRM_V3, NVIDIA], ids=lambda spec: spec.name)
def test_a_replayed_graph_is_its_launches(spec: object) -> None:
    """At the real width, users of odd lengths, several times: what a replay leaves behind must not matter."""
    assert spec is DLRM_V3 or spec is NVIDIA
    world = World(Scenario("odd", spec, (1, 63, 777, 2001), 77), CUDA, torch.bfloat16)
    with torch.inference_mode():
        world.encode()
        eager = world.score(256)
        world.backend.prepare(world.pool, 256)
        for _ in range(3):
            replayed = world.score(256)
            assert world.wrong(replayed, eager, world.targets) <= BOUNDS[torch.bfloat16]
            assert torch.equal(replayed, world.score(256))


@pytest.mark.parametrize("new", [1, 16, 100])
@pytest.mark.parametrize("spec", [DLRM_V3, NVIDIA], ids=lambda spec: spec.name)
def test_a_replayed_append_is_its_launches(spec: object, new: int) -> None:
    """At the real width, for users of odd lengths at once: the times and the scores of what was replayed."""
    assert spec is DLRM_V3 or spec is NVIDIA
    world = World(Scenario("odd", spec, (101, 163, 777), 77), CUDA, torch.bfloat16)
    lens = world.scenario.lens
    tokens, times = world.tokens.split(list(lens)), [torch.arange(n, device=CUDA) for n in lens]
    old = [n - new for n in lens]

    def appended() -> list[KVState]:
        states = [world.pool.empty().extend(own[:n]) for own, n in zip(times, old, strict=True)]
        world.backend.encode(states, torch.cat([own[:n] for own, n in zip(tokens, old, strict=True)]), old)
        longer = [state.grown(new) for state in states]
        newest = torch.cat([own[-new:] for own in times])
        world.backend.encode(longer, torch.cat([own[-new:] for own in tokens]), [new] * len(lens), newest)
        return longer

    def scores(states: list[KVState]) -> Tensor:
        return world.backend.hidden(states, world.targets, [77] * len(lens), [10**12] * len(lens), 4_096)

    with torch.inference_mode():
        expected = scores(appended())
        world.backend.prepare(world.pool, 256)
        for _ in range(3):
            states = appended()
            assert all(torch.equal(state.times, own) for state, own in zip(states, times, strict=True))
            assert world.wrong(scores(states), expected, world.targets) <= BOUNDS[torch.bfloat16]
            del states  # there is not room for twice as many


@pytest.mark.parametrize("codes", [None, torch.int8, torch.float8_e4m3fn])
def test_a_state_is_scored_while_it_arrives_behind_a_slow_stream(codes: torch.dtype | None) -> None:
    """Promoted, scored at once, appended to and demoted: as if it had never left."""
    spec = replace(NVIDIA, num_layers=3, dim=64, num_heads=2, head_dim=32)
    world = World(Scenario("copied", spec, (777,), 77), CUDA, torch.float32)
    shape = world.backend.layout.shape
    backend = TritonBackend(world.stack, shape, codes)
    device = KVPool(backend.layout, 32)
    host = KVPool(PlainLayout(replace(shape, device=torch.device("cpu")), PAGE_TOKENS, codes), 32, pinned=True)
    copier = CudaCopier(CUDA)
    with torch.inference_mode():
        times = torch.arange(777, device=CUDA)
        state = device.empty().extend(times[:700])
        backend.encode([state], world.tokens[:700], [700])
        with ThreadPoolExecutor(1) as worker:
            below = worker.submit(copier.demote, state, host, copier.mark()).result()
        expected = _scores(backend, state, world)
        for _ in range(10):
            with torch.cuda.stream(copier._to_device):
                torch.cuda._sleep(20_000_000)  # so that what does not wait reads what has not come
            there = copier.promote(below, device)
            assert torch.equal(_scores(backend, there, world), expected)
            longer = there.extend(times[700:])
            backend.encode([longer], world.tokens[700:], [77])
            with ThreadPoolExecutor(1) as worker:
                back = worker.submit(copier.demote, longer, host, copier.mark(), below).result()
            again = copier.promote(back, device)
            assert torch.equal(_scores(backend, again, world), _scores(backend, longer, world))
            del there, longer, again, back
            copier.idle()
    copier.close()


def _scores(backend: StackBackend, state: KVState, world: World) -> Tensor:
    return backend.hidden([state], world.targets, [len(world.targets)], [10**12], 64)


@triton.jit  # type: ignore[untyped-decorator]
def _silu_kernel(X, OUT, num, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + at, silu(tl.load(X + at, mask=at < num, other=0.0), True), mask=at < num)


def test_silu_by_tanh_is_as_exact_as_it_says() -> None:
    """Within 2**-12 of |x|, beside float64; NaN stays NaN, and what is large is itself or nothing."""
    x = torch.cat([torch.linspace(-40, 40, 1 << 20), torch.randn(1 << 20), torch.tensor([0.0, 1e30, -1e30])]).to(CUDA)
    out = torch.full_like(x, float("nan"))
    _silu_kernel[(triton.cdiv(len(x), 1024),)](x, out, len(x), BLOCK=1024)
    exact = torch.nn.functional.silu(x.double())
    off = (out.double() - exact).abs()
    assert bool((off <= 2.0**-12 * x.double().abs() + 1e-30).all())
    nan = torch.tensor([float("nan")], device=CUDA)
    _silu_kernel[(1,)](nan, nan, 1, BLOCK=1024)
    assert bool(nan.isnan().all())


@pytest.mark.parametrize("dtype", [PayloadDtype.BFLOAT16, PayloadDtype.INT8])
def test_payloads_through_pinned_memory_behind_a_slow_stream(dtype: PayloadDtype) -> None:
    """Many at once, while the device is busy: no payload is taken for another's, and scores are a host's."""
    shape = KVShape(2, 2, 16, 16, torch.bfloat16, CUDA)
    device, host = KVPool(PlainLayout(shape), 256), KVPool(PlainLayout(replace(shape, device=torch.device("cpu"))))
    payloads = []
    with torch.inference_mode():
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            state = host.empty().extend(torch.arange(300) + seed)
            for layer in range(2):
                k, v = (torch.randn(2, 300, 16, generator=generator).bfloat16() for _ in range(2))
                state.write(layer, k, v)
            payloads.append((encode(state, 0, 300, dtype), 300))
        torch.cuda._sleep(50_000_000)
        states = [decode([payload], device, dtype) for payload in payloads]
        torch.cuda._sleep(50_000_000)
        for there, payload in zip(states, payloads, strict=True):
            here = decode([payload], host, dtype)
            assert torch.equal(there.times.cpu(), here.times)
            for layer in range(2):
                assert all(torch.equal(a.cpu(), b) for a, b in zip(there.read(layer), here.read(layer), strict=True))
