"""A stack's weights, handed to the fused CPU kernel (`kernels.fused`)."""

from torch import Tensor, nn

from kernels.fused import FusedStack, Kernel, LayerWeights, StackConfig
from mfalcon.models.layer import HSTULayer, Stack


def fused_stack(kernel: Kernel, stack: Stack) -> FusedStack:
    """A packed copy of a stack's weights: the same function of tokens, in the kernel's number format."""
    layers = [layer for layer in stack.layers if isinstance(layer, HSTULayer)]
    config = layers[0].config
    form = StackConfig(
        num_heads=config.num_heads,
        dim=config.dim,
        qk_dim=config.qk_dim,
        v_dim=config.v_dim,
        attention_norm=config.attention_norm,
        logit_scale=config.logit_scale if config.logit_scale is not None else config.qk_dim**-0.5,
        norm_eps=config.norm_eps,
        activate_all=config.activation == "uvqk",
        concat=config.output == "concat",
    )
    return FusedStack(kernel, form, [_weights(layer) for layer in layers])


def _weights(layer: HSTULayer) -> LayerWeights:
    return LayerWeights(
        uvqk=layer.uvqk.weight,
        output=layer.output.weight,
        uvqk_bias=layer.uvqk.bias,
        output_bias=layer.output.bias,
        norm_in=_affine(layer.norm_in),
        norm_out=_affine(layer.norm_out),
        bias=layer.bias() if layer.bias else None,
    )


def _affine(norm: nn.LayerNorm) -> tuple[Tensor, Tensor] | None:
    return (norm.weight, norm.bias) if norm.elementwise_affine else None
