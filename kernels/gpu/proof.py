"""Which sources the gate (`kernels.gpu.aot`) last held for, in all cases: the same sources come to the same machine
code, so nothing has to be compiled again until one changes.
"""

import hashlib
from pathlib import Path

from kernels.gpu import limits

_KERNELS = Path(__file__).parents[1]
_SAMPLED = 16


def path_of(version: str) -> Path:
    """The committed file, for a version of Triton; it may be none."""
    return limits.path_of(version).with_suffix(".proof")


def digest(version: str, folder: Path = _KERNELS) -> str:
    """Of the version of Triton, of its limits, and of every module here but those of the CPU."""
    sources = [path for path in folder.rglob("*.py") if path.relative_to(folder).parts[0] != "cpu"]
    found = hashlib.sha256(version.encode())
    for path in sorted([*sources, folder / "gpu" / limits.path_of(version).name]):
        content = path.read_bytes()
        found.update(f"\n{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def holds(version: str) -> bool:
    """Whether the gate held for what lies here."""
    path = path_of(version)
    return path.is_file() and path.read_text().strip() == digest(version)


def write(version: str) -> None:
    """Keep that the gate held for what lies here."""
    path_of(version).write_text(f"{digest(version)}\n")


def sample(keys: list[str]) -> list[str]:
    """Some cases, of all architectures, that say whether this machine's compiler is the one that it was."""
    return keys[::_SAMPLED]
