"""What tests of the server launch is compiled ahead of time: tests/conftest.py holds it; this sees that it can fail."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="no triton for this platform")

from kernels.gpu.linear import linear
from kernels.gpu.self_check import deviation
from kernels.sample_stack import Form
from tests.device import DEVICE, needs_interpreter
from tests.launches import Launch, compiled, in_production, watched

pytestmark = needs_interpreter


def test_a_choice_that_is_compiled_by_no_case_is_seen() -> None:
    seen: list[Launch] = []
    with watched(seen.append):
        linear(torch.ones(3, 4), torch.ones(5, 4), residual=torch.ones(3, 5), num_silu=2)
    (launch,) = seen
    assert dict(launch.choices) == {"HAS_BIAS": False, "HAS_RESIDUAL": True, "NUM_SILU": True}
    assert not in_production(launch) & compiled(90)


def test_a_small_launch_stands_for_tiles_of_every_height() -> None:
    heights = {launch.tile_rows for launch in compiled(90) if launch.kernel == "target_attention_kernel"}
    assert heights == {16, 64, 128}
    known = next(launch for launch in compiled(90) if launch.kernel == "target_attention_kernel")
    assert in_production(known) == {replace(known, tile_rows=height) for height in heights}


@pytest.mark.parametrize(("dtype", "heights"), [(torch.float32, {16, 64}), (torch.bfloat16, {16, 64, 128})], ids=str)
def test_the_self_check_runs_tiles_of_every_height(dtype: torch.dtype, heights: set[int]) -> None:
    """On Hopper those of 64 rows and more are products of warpgroups, and 128 rows are what large requests have."""
    seen: list[Launch] = []
    with watched(seen.append, compute=False):
        deviation(DEVICE, dtype, Form())
    for kernel in ("target_attention_kernel", "prefix_attention_kernel", "kv_write_kernel"):
        assert {launch.tile_rows for launch in seen if launch.kernel == kernel} == heights
