"""A projection is the same by the Triton kernel and by the library, and a stored file chooses between them."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="no triton for this platform")

from kernels import paged_reference
from kernels.gpu import configs, linear
from kernels.gpu.configs import Device, Library, LinearConfig
from tests.device import DEVICE, dtypes, needs_interpreter, poisoned, rounding

DTYPE = pytest.mark.parametrize("dtype", dtypes(), ids=lambda dtype: str(dtype).removeprefix("torch."))
NAMES = map("a device {}".format, itertools.count())
"""What is stored is read once for each name."""


def tolerance(dtype: torch.dtype) -> float:
    """float64 and float32: sums in another order. Below: the product is rounded, then SiLU or a sum, which add at most
    1.1 times that error and a rounding of their own; a bias and a residual are two such sums.
    """
    return {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3.5 * rounding(dtype))


def rows(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    """Views of something wider, as rows come to a projection."""
    wide = torch.randn(*shape[:-1], shape[-1] + 3, generator=generator)
    return wide.to(DEVICE, dtype)[..., 1:-2]


@DTYPE
@settings(max_examples=15)
@given(
    st.sampled_from((1, 5, 33)),
    st.sampled_from((1, 40, 77)),
    st.sampled_from((5, 64, 130)),
    st.booleans(),
    st.booleans(),
    st.sampled_from((0, 0.4, 1)),
    st.integers(0, 99),
)
def test_the_library_gives_the_reference(
    dtype: torch.dtype, num_rows: int, num_in: int, num_out: int, biased: bool, added: bool, silu: float, seed: int
) -> None:
    """With whatever follows: bias, SiLU of some columns or all, a residual; and nothing given is written to."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = rows(generator, dtype, num_rows, num_in), rows(generator, dtype, num_out, num_in).contiguous()
    bias = rows(generator, dtype, num_out).contiguous() if biased else None
    residual = rows(generator, dtype, num_rows, num_out) if added else None
    num_silu = int(silu * num_out)
    arguments = [None if t is None else t.cpu().double() for t in (x, weight, bias, residual)]
    with poisoned():
        got = linear.by_library(x, weight, bias, residual, num_silu)
    assert arguments[0] is not None and arguments[1] is not None
    expected = paged_reference.linear(arguments[0], arguments[1], arguments[2], arguments[3], num_silu)
    magnitudes = [None if t is None else t.abs() for t in arguments]
    largest = paged_reference.linear(magnitudes[0], magnitudes[1], *magnitudes[2:])  # type: ignore[arg-type]
    assert got.dtype == dtype and got.shape == expected.shape
    assert float((got.double().cpu() - expected).abs().max()) <= tolerance(dtype) * float(largest.max())
    for given_, before in zip((x, weight, bias, residual), arguments, strict=True):
        assert given_ is None or before is None or torch.equal(given_.cpu().double(), before)


def stored(folder: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, dict[str, int]]) -> Device:
    """A device for which this is stored."""
    name = next(NAMES)
    (folder / f"{name.replace(' ', '_')}.json").write_text(json.dumps(content))
    monkeypatch.setattr(configs, "TUNED", folder)
    return Device(name, 90, 132)


def test_a_stored_file_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By class of rows, width and bytes; where nothing is stored the kernel computes."""
    sizes = {"block_m": 64, "block_n": 64, "block_k": 32, "num_warps": 4, "num_stages": 2}
    content: dict[str, dict[str, int]] = {"linear/2/65536/2048": {"library": True}, "linear/2/4096/2048": sizes}
    where = stored(tmp_path, monkeypatch, content)
    assert {configs.linear(where, 2, num_rows, 2048) for num_rows in (32_769, 65_536)} == {Library()}
    assert configs.linear(where, 2, 3000, 2048) == LinearConfig(**sizes)
    for num_bytes, num_rows, num_out in ((4, 65_536, 2048), (2, 32_768, 2048), (2, 65_536, 512)):
        assert configs.linear(where, num_bytes, num_rows, num_out) == configs.linear_rule(90, num_bytes, num_rows)


@needs_interpreter
@pytest.mark.parametrize("library", [True, False])
def test_a_projection_goes_where_the_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: bool) -> None:
    where = stored(tmp_path, monkeypatch, {"linear/8/8/40": {"library": True}} if library else {})
    monkeypatch.setattr(configs, "INTERPRETER", where)
    called: list[int] = []
    right: Callable[..., Tensor] = linear.by_library

    def seen(x: Tensor, *rest: object) -> Tensor:
        called.append(len(x))
        return right(x, *rest)

    monkeypatch.setattr(linear, "by_library", seen)
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (rows(generator, torch.float64, *shape).contiguous() for shape in ((7, 20), (40, 20), (40,)))
    with poisoned():
        got = linear.linear(x, weight, bias, None, 10)
    assert called == ([7] if library else [])
    expected = paged_reference.linear(x.cpu(), weight.cpu(), bias.cpu(), None, 10)
    assert float((got.cpu() - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
