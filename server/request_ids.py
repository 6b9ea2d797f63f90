"""The name of a request: the caller's where it gives one that is fit for a log, else one of ours."""

import os
import re
from typing import Final

REQUEST_ID: Final = "x-request-id"
"""Header of HTTP, metadata and trailer of gRPC."""
_SANE: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_RANDOM_BYTES: Final = 16


def request_id_of(given: str | None) -> str:
    """What the caller says, if that is 1 to 128 letters, digits or ._~:/+=@-; else 32 random hex digits."""
    if given is not None and _SANE.fullmatch(given):
        return given
    return os.urandom(_RANDOM_BYTES).hex()
