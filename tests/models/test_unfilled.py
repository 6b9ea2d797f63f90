"""A model without memory: its shapes are those of one that has some, whatever fills its weights, and quickly."""

import subprocess
import sys

import torch
from torch import nn

from mfalcon.models.registry import build
from mfalcon.models.unfilled import unfilled
from tests.small import small_config

LOADS = """
import sys
from mfalcon.models.registry import build
from mfalcon.models.unfilled import unfilled
from tests.small import small_config
with unfilled():
    build(small_config())
assert not {"sympy", "torch._dynamo"} & sys.modules.keys()
"""


def test_shapes_are_those_of_a_model_with_memory() -> None:
    config = small_config()
    with unfilled():
        shapes = build(config)
    assert {tensor.device.type for tensor in shapes.state_dict().values()} == {"meta"}
    assert {name: tensor.shape for name, tensor in shapes.state_dict().items()} == {
        name: tensor.shape for name, tensor in build(config).state_dict().items()
    }


def test_every_way_to_fill_a_weight_is_passed_over_or_done() -> None:
    with unfilled():
        weight = torch.empty(5, 7)
        fills = (nn.init.normal_, nn.init.trunc_normal_, nn.init.xavier_normal_, nn.init.kaiming_normal_)
        for fill in (*fills, nn.init.orthogonal_, nn.init.xavier_uniform_, nn.init.zeros_, nn.init.ones_):
            assert fill(weight) is weight
        assert nn.init.normal_(tensor=weight, std=0.1) is weight
        assert weight.normal_() is weight
    filled = nn.init.normal_(torch.zeros(100))
    assert filled.std() > 0.5


def test_nothing_of_torchs_compiler_is_imported() -> None:
    subprocess.run([sys.executable, "-c", LOADS], check=True, timeout=300)
