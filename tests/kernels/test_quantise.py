"""8-bit codes keep what must not change, and round the rest."""

import pytest
import torch

from kernels.quantise import MAX_CODE, dequantised, quantised


@pytest.mark.parametrize("codes", MAX_CODE, ids=str)
def test_zero_and_the_largest_are_kept(codes: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [3.0, -1.5, 0.0], [-1e30, 1e30, 0.0]])
    coded, scales = quantised(x, codes)
    assert scales[0] == 0 and (coded[0].float() == 0).all()
    assert coded[1:, :1].float().abs().tolist() == [[MAX_CODE[codes]]] * 2
    assert torch.allclose(dequantised(coded, scales, torch.float32), x, rtol=2**-4, atol=0)


def test_without_scales_the_codes_are_the_numbers() -> None:
    x = torch.tensor([1.5, -2.0])
    assert torch.equal(dequantised(x, None, torch.float64), x.double())
