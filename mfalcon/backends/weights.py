"""A stack of the model as the kernels take it: what its layers share, and their weights."""

from torch import Tensor, nn

from kernels.stack import LayerWeights, StackConfig
from mfalcon.models.layer import HSTULayer, Stack
from mfalcon.pairs import Pairs


def stack_config(stack: Stack) -> StackConfig:
    """What the layers of a stack share, as the kernels take it."""
    config = _layers(stack)[0].config
    return StackConfig(
        num_heads=config.num_heads,
        dim=config.dim,
        qk_dim=config.qk_dim,
        v_dim=config.v_dim,
        attention_norm=config.attention_norm,
        logit_scale=config.logit_scale if config.logit_scale is not None else config.qk_dim**-0.5,
        norm_eps=config.norm_eps,
        activate_all=config.activation == "uvqk",
        concat=config.output == "concat",
        softmax=config.attention == "softmax",
        rotary_base=config.rope.base if config.rope is not None else None,
    )


def layer_weights(stack: Stack) -> list[LayerWeights]:
    """The weights of a stack, as the kernels take them."""
    return [
        LayerWeights(
            uvqk=layer.uvqk.weight,
            output=layer.output.weight,
            uvqk_bias=layer.uvqk.bias,
            output_bias=layer.output.bias,
            norm_in=_affine(layer.norm_in),
            norm_out=_affine(layer.norm_out),
            bias=layer.bias() if layer.bias else None,
            reach=layer.reach,
        )
        for layer in _layers(stack)
    ]


def pairs_of(stack: Stack) -> Pairs:
    """How much the layers of a stack see of a prefix."""
    return Pairs(tuple(None if layer.reach is None else layer.reach.most_seen for layer in _layers(stack)))


def _layers(stack: Stack) -> list[HSTULayer]:
    return [layer for layer in stack.layers if isinstance(layer, HSTULayer)]


def _affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor] | None:
    return (norm.weight, norm.bias) if norm.elementwise_affine else None
