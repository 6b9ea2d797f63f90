"""Kinds of values that the parts of a configuration share. Unknown keys are refused."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_NUMBER = 1e30
"""Of what a task learns or an event carries, so that a blend of such numbers fits float32."""
Positive = Annotated[int, Field(gt=0)]
Width = Annotated[int, Field(gt=0, le=65_536)]
"""Of a vector. It and the other limits are far above any model in use: what is beyond is a mistake or an attack."""
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


class Frozen(BaseModel):
    """Data from outside: immutable, and a mistyped key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
