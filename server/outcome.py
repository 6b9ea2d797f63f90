"""What every failed write says: whether it may have happened all the same."""

from typing import Final, Literal, TypeAlias

from mfalcon.errors import MFalconError

Outcome: TypeAlias = Literal["nothing-written", "unknown"]

OUTCOME: Final = "mfalcon-outcome"
"""Trailer of gRPC; in HTTP it is the field `outcome` of the error."""
NOTHING_WRITTEN: Final = "nothing-written"
UNKNOWN: Final = "unknown"


def outcome_of(error: Exception) -> Outcome:
    """Of a write that raised this. What is no error of ours may have come at any time."""
    return NOTHING_WRITTEN if isinstance(error, MFalconError) and not error.may_be_done else UNKNOWN
