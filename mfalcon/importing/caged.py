"""A trainer's checkpoint read by a process of its own, without network and with an end to its memory and its time,
which leaves its tensors as safetensors.

`python -m mfalcon.importing.caged LAYOUT CHECKPOINT OUT BYTES` is that process.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mfalcon.errors import CheckpointError, MFalconError
from mfalcon.importing.cage import enter
from mfalcon.importing.recsys_files import read_export
from mfalcon.importing.trainer_files import read_checkpoint
from mfalcon.memory import available_bytes, is_out_of_memory

Layout: TypeAlias = Literal["dlrm-v3", "recsys-examples"]
_READ: Final[Mapping[str, Callable[[Path], dict[str, Tensor]]]] = {
    "dlrm-v3": read_checkpoint,
    "recsys-examples": read_export,
}
_REFUSED = 3
_TENSORS = "tensors.safetensors"
_COPIES = 5
"""Of the files that may be in memory at once: as read, as a tensor, in its table, as bytes to write, and one over."""
_LEAST_BYTES = 512 << 20
_MOST_FILES = 100_000
_SECONDS = 300.0
_BYTES_A_SECOND = 10 << 20
_MOST_SAID = 2_000


def read_caged(layout: Layout, checkpoint: Path, scratch: Path, seconds: float | None = None) -> dict[str, Tensor]:
    """Every tensor of a trainer's checkpoint by its name there. scratch: a folder for what is written on the way.
    seconds: that it may take; five minutes and what its size takes if None.

    Raises CheckpointError with what the process said, or how it died.
    """
    size, out = _size(checkpoint), scratch / _TENSORS
    memory = min(_COPIES * size + _LEAST_BYTES, available_bytes())
    limit = _SECONDS + size / _BYTES_A_SECOND if seconds is None else seconds
    command = [sys.executable, "-m", "mfalcon.importing.caged", layout, str(checkpoint), str(out), str(memory)]
    # Nothing of ours is for it to see: no token, no password, no proxy.
    environment = {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=limit
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"{checkpoint}: was not read within {limit:.0f} seconds, the limit for {size >> 20} MiB"
        ) from error
    if done.returncode == _REFUSED:
        raise CheckpointError(done.stdout.strip())
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointError(
            f"{checkpoint}: the process that read it ended with {done.returncode} ({last[:300]}); it may take "
            f"{memory >> 20} MiB of memory for {size >> 20} MiB of files"
        )
    try:
        return load_file(out)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{checkpoint}: what was read of it cannot be read again ({error})") from error


def main(layout: str, checkpoint: Path, out: Path, memory_bytes: int) -> int:
    """Exit code; a refusal is one line on standard output."""
    try:
        enter(memory_bytes)
        save_file(read_safely(layout, checkpoint, memory_bytes), out)
    except MFalconError as error:
        print(error)
        return _REFUSED
    return 0


def read_safely(layout: str, checkpoint: Path, memory_bytes: int) -> dict[str, Tensor]:
    """A checkpoint of a layout. Raises CheckpointError, of one screen, whatever its files hold."""
    try:
        return _READ[layout](checkpoint)
    except MFalconError as error:
        raise CheckpointError(_plain(str(error))) from error
    except Exception as error:
        # What a stranger's files make our code stumble over is a fault of the files.
        if is_out_of_memory(error):
            raise CheckpointError(
                f"{checkpoint}: needs more than {memory_bytes >> 20} MiB of memory, the limit for its files"
            ) from error
        raise CheckpointError(_plain(f"{checkpoint}: cannot be read ({type(error).__name__}: {error})")) from error


def _plain(said: str) -> str:
    """One line that no terminal obeys, whatever names the files hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in said[:_MOST_SAID])


def _size(checkpoint: Path) -> int:
    """Bytes of the files of a folder. Raises CheckpointError."""
    total = 0
    for number, path in enumerate(checkpoint.rglob("*")):
        if number >= _MOST_FILES:
            raise CheckpointError(f"{checkpoint}: has more than {_MOST_FILES} files")
        total += path.lstat().st_size
    return total


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])))
