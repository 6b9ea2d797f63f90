"""A disk that is full, read-only or gone, told in one sentence."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mfalcon.errors import CheckpointError


@contextmanager
def writing(path: Path, left: str) -> Iterator[None]:
    """Raises CheckpointError if the block cannot write what belongs to `path`. left: what is there then."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {_reason(error)}; {left}") from error


def _reason(error: OSError | SafetensorError) -> str:
    """In the words of the system: safetensors puts its own around them."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    found = re.search(r"os error (\d+)", str(error))
    return os.strerror(int(found[1])) if found else str(error)
