"""A trainer's checkpoint read by a process of its own, without network, which leaves its tensors as safetensors.

`python -m mfalcon.importing.caged CHECKPOINT OUT` is that process.
"""

import os
import subprocess
import sys
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mfalcon.errors import CheckpointError, MFalconError
from mfalcon.importing.cage import enter
from mfalcon.importing.trainer_files import read_checkpoint

_REFUSED = 3
_TENSORS = "tensors.safetensors"


def read_caged(checkpoint: Path, scratch: Path) -> dict[str, Tensor]:
    """Every tensor of a trainer's checkpoint by its name there. scratch: a folder for what is written on the way.

    Raises CheckpointError with what the process said, or how it died.
    """
    out = scratch / _TENSORS
    command = [sys.executable, "-m", "mfalcon.importing.caged", str(checkpoint), str(out)]
    # Nothing of ours is for it to see: no token, no password, no proxy.
    environment = {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == _REFUSED:
        raise CheckpointError(done.stdout.strip())
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointError(f"{checkpoint}: the process that read it ended with {done.returncode} ({last[:300]})")
    try:
        return load_file(out)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{checkpoint}: what was read of it cannot be read again ({error})") from error


def main(checkpoint: Path, out: Path) -> int:
    """Exit code; a refusal is one line on standard output."""
    try:
        enter()
        save_file(read_checkpoint(checkpoint), out)
    except MFalconError as error:
        print(error)
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
