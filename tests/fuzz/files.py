"""Where targets write the files that they read: in memory where there is such a place."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def directory(name: str) -> Path:
    """A directory that ends with the process."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix=f"mfalcon-fuzz-{name}-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
