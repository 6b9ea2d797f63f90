"""Settings of item rows that change while a model serves."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator

from mfalcon.types import ItemsPolicy

_KEEP_S = 60.0


class ItemSettings(BaseModel):
    """Where deltas of items come from, and what becomes of what was computed with older rows. docs/live-items.md
    explains.
    """

    items_dir: Path | None = Field(
        default=None,
        description="Directory of deltas of item rows, which `mfalcon update-items --directory` writes: all of them "
        "are applied in their order, before the server is ready and whenever one comes. With [[models]] each has its "
        "own.",
    )
    items_watch_seconds: float = Field(
        default=0.5,
        ge=0.01,
        le=86_400,
        description="Seconds between looks at a directory of deltas, or of graph vectors.",
    )
    graph_dir: Path | None = Field(
        default=None,
        description="Directory of graph vectors of a model that was trained with --graph, which `mfalcon graph` "
        "writes: the newest are served, before the server is ready and whenever some come. With [[models]] each has "
        "its own.",
    )
    items_policy: ItemsPolicy = Field(
        default="exact",
        description="What becomes of a KV state of which an item row has changed: exact encodes what follows the first "
        "such event again, bounded does so after items_keep_s, frozen never.",
    )
    items_keep_s: float | None = Field(
        default=None,
        ge=0,
        le=10**7,
        description="Seconds after it was encoded for which a KV state is used although a row of it has changed; of "
        "bounded, and 60 there if not given.",
    )
    items_most_new: int = Field(
        default=1_000_000, ge=0, le=2**31, description="Most items that deltas may bring beside the checkpoint's."
    )

    @property
    def items_keep_seconds(self) -> float:
        """Of `bounded`."""
        return _KEEP_S if self.items_keep_s is None else self.items_keep_s

    @model_validator(mode="after")
    def _only_bounded_has_a_time(self) -> Self:
        if self.items_keep_s is not None and self.items_policy != "bounded":
            raise ValueError(
                f"items_keep_s: got {self.items_keep_s:g}, must not be given while items_policy is {self.items_policy}"
            )
        return self
