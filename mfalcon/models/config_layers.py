"""The layers of a model, as data: their attention, and what they see of a history."""

from typing import Literal, Self

from pydantic import Field, model_validator

from mfalcon.models.config_kinds import Frozen, Width

AttentionKind = Literal["pointwise", "softmax"]


class RelativeBiasConfig(Frozen):
    """rab^{p,t} of the HSTU paper (section 3.2): a bias by distance and one by log-bucketed time difference."""

    num_positions: int = Field(gt=0, le=1 << 22)
    """Distances from 0 to num_positions - 1; farther tokens share the last one."""
    num_time_buckets: int = Field(default=64, gt=0, le=4_096)
    time_bucket_width: float = Field(default=0.301, ge=1e-6, le=1e3)
    """Natural-log units per bucket: bucket = floor(ln(max(1, dt)) / width)."""
    time_unit_ms: int = Field(default=1000, gt=0, le=10**12)


class RopeConfig(Frozen):
    """Rotary positions (RoFormer, arXiv 2104.09864): a token turns its queries and keys by its place in the window."""

    base: float = Field(default=10_000.0, ge=1, le=1e9)
    """Neighbours 2i and 2i + 1 of a head turn by position * base ** (-2i / qk_dim)."""


class AlibiConfig(Frozen):
    """A bias that falls with the distance, at a fixed slope a head (ALiBi, arXiv 2108.12409)."""

    num_positions: int = Field(gt=0, le=1 << 22)
    """Distances from 0 to num_positions - 1; farther tokens share the last one."""


class LayerConfig(Frozen):
    """One HSTU layer. The defaults are ours; golden tests configure Meta's two public variants."""

    dim: Width
    num_heads: int = Field(gt=0, le=1_024)
    qk_dim: Width
    """Head dimension of queries and keys."""
    v_dim: Width
    """Head dimension of values."""
    attention: AttentionKind = "pointwise"
    """Weights of what a token sees: SiLU of each logit, as in the HSTU paper, or a softmax over all of them."""
    attention_norm: float = Field(ge=1e-6, le=1e9)
    """Constant that divides the attention weights; never a length of the batch (law 4). 1 with softmax."""
    logit_scale: float | None = Field(default=None, ge=-1e6, le=1e6)
    """Multiplies q.k; None is 1/sqrt(qk_dim)."""
    activation: Literal["uvqk", "u"] = "uvqk"
    """Which projections pass through SiLU."""
    norm_affine: bool = True
    norm_eps: float = Field(default=1e-6, ge=1e-12, le=1)
    uvqk_bias: bool = True
    output: Literal["gated", "concat"] = "gated"
    """gated: o(u * LN(av)); concat: o([u, av, u * LN(av)])."""
    output_bias: bool = True
    bias: RelativeBiasConfig | None = None
    rope: RopeConfig | None = None
    """Beside bias, if both are given."""
    alibi: AlibiConfig | None = None
    """In the place of bias, and of rope."""
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _has_a_form(self) -> Self:
        if self.attention == "softmax" and self.attention_norm != 1:
            raise ValueError(
                f"layer: attention_norm is {self.attention_norm:g}, must be 1 with softmax, whose weights add up to 1"
            )
        if self.rope is not None and self.qk_dim % 2:
            raise ValueError(f"layer: qk_dim is {self.qk_dim}, must be even with rope, which turns pairs of numbers")
        if self.alibi is not None and (self.bias is not None or self.rope is not None):
            beside = "bias" if self.bias is not None else "rope"
            raise ValueError(f"layer: must have either alibi or {beside}: each says how far apart tokens are")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether attention is pointwise, and knows positions by bias alone."""
        return self.attention == "pointwise" and self.rope is None and self.alibi is None


class ReachConfig(Frozen):
    """What one layer sees of the history, in tokens: a local window and the first tokens (the semi-local attention of
    ULTRA-HSTU, arXiv 2602.16986), and how much of it counts for targets (its attention truncation).
    """

    tokens: int = Field(gt=0, le=1 << 21)
    """A token of the history sees itself and so many before it."""
    targets: int | None = Field(default=None, gt=0, le=1 << 21)
    """A target sees itself and so many of the newest tokens, the prefix length of the layer; None: as `tokens`."""
    first: int = Field(default=0, ge=0, le=1 << 21)
    """Both also see so many of the first tokens of the window."""

    @property
    def of_targets(self) -> int:
        """What `targets` stands for."""
        return self.tokens if self.targets is None else self.targets

    @property
    def most_seen(self) -> tuple[int, int]:
        """Keys that a token of the history sees at most, and that a target sees."""
        return self.first + self.tokens + 1, self.first + self.of_targets
