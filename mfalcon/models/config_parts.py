"""What one architecture alone has beside its layers, as data."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mfalcon.models.config_kinds import Frozen, Name, Width


class DinConfig(Frozen):
    """A DLRM-style ranker: DIN's activation unit over the last events (arXiv 1706.06978), the low-rank cross layers of
    DCN-V2 (arXiv 2008.13535), and the experts, gates and towers of MMoE (KDD 2018).
    """

    dim: int = Field(gt=0, le=4_096)
    """Width of an event and of a candidate where the two meet."""
    context_dim: int = Field(default=8, gt=0, le=4_096)
    """Width of each context feature."""
    side_fields: bool = False
    """Whether each side feature of a candidate is also a field of its own, of width `dim`."""
    activation: tuple[Annotated[int, Field(gt=0, le=4_096)], ...] = Field(min_length=1, max_length=8)
    """Hidden widths of the activation unit."""
    num_pools: int = Field(default=1, gt=0, le=64)
    """Weighted sums that the activation unit makes of the events."""
    num_cross_layers: int = Field(gt=0, le=64)
    cross_rank: int = Field(gt=0, le=16_384)
    num_experts: int = Field(gt=0, le=256)
    experts: tuple[Annotated[int, Field(gt=0, le=16_384)], ...] = Field(min_length=1, max_length=8)
    """Widths of the layers of every expert. The hidden width of the towers is `RankerConfig.head_dim`."""


class LumConfig(Frozen):
    """What a large user model is asked: conditions, each an outcome of a task and a category of items, or any
    (`mfalcon/models/conditions.py`).
    """

    task: Name
    """The binary task whose two labels are the outcomes."""
    category: Name | None = None
    """The side feature whose values are the categories; None for any item alone."""


class AnchorConfig(Frozen):
    """Where a DLRM-v3 counts from whose states outlive a request: not from the history's end and the request."""

    num_events: int = Field(gt=0, le=1 << 20)
    """A history of so many events has the trainer's own positions; of any other one they are off by the difference."""
    time_s: int = Field(ge=0, lt=1 << 40)
    """The request whose ages events have. Those after it are as if of that time."""
    num_user_tokens: int = Field(ge=0, le=256)
    """Features of the user before the events, whose positions are kept free."""


class DlrmConfig(Frozen):
    """What is around the layers of Meta's DLRM-v3 (generative-recommenders, `DlrmHSTU`)."""

    table_dim: Width
    """Of items and of the user's features."""
    hidden_dim: Width
    """Of the encoders of content and actions."""
    action_dim: Width
    """Of each action; those of an event lie side by side."""
    item_dim: Width
    """Of the hidden layer of the item's own encoder."""
    num_positions: int = Field(gt=0, le=1 << 22)
    """Counted from the end of the history; older events share the last one."""
    num_ages: int = Field(gt=0, le=1 << 22)
    """Buckets of the square root of the minutes before the request."""
    last_age: int = Field(ge=0, le=1 << 22)
    """Shared by all that is older. The trainer's kernels take num_ages - 1, its plain code the width less 1."""
    postprocessor: Literal["timestamp", "layer_norm", "l2"]
    """A hidden target is normed with the periods of the request's time, normed, or made of length 1."""
    periods: tuple[tuple[Annotated[int, Field(gt=0, le=10**9)], Annotated[int, Field(gt=0, le=10**6)]], ...] = ()
    """Seconds of a unit, and units of a period: an hour of 24, a day of 7."""
    min_history: tuple[Annotated[int, Field(ge=0, le=1 << 30)], ...] = ()
    """The length below which each context feature is left out."""
    counted_candidates: int = Field(ge=0, le=1 << 20)
    """Candidates that the trainer's lengths count. A constant: no candidate may move the scores of others."""
    anchor: AnchorConfig | None = None
    """Of the form whose states outlive a request; None of the trainer's own."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.last_age >= self.num_ages:
            raise ValueError(f"dlrm: last_age is {self.last_age}, must be below num_ages, {self.num_ages}")
        if bool(self.periods) != (self.postprocessor == "timestamp"):
            raise ValueError("dlrm: the postprocessor timestamp must have periods, and no other may")
        return self


class RecsysConfig(Frozen):
    """What is around the layers of the HSTU ranker of NVIDIA's recsys-examples."""

    num_actions: int = Field(gt=0, le=1 << 24)
    """Rows of the table of actions."""
    action_weights: tuple[Annotated[int, Field(gt=0, lt=1 << 31)], ...] = Field(max_length=32)
    """Of each action; those of an event add up to its row."""
    num_positions: int = Field(ge=0, le=1 << 22)
    """Tokens from the start of the window; later ones share the last. 0 for a model without."""
    head_widths: tuple[Width, ...] = Field(max_length=16)
    """Hidden layers of the prediction head."""
    head_activation: Literal["relu", "gelu"]
