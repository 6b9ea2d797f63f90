"""What each case of the gate (`kernels.gpu.aot`) may take, by minor version of Triton: each has another compiler."""

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from kernels.gpu import configs

MAY_SPILL = frozenset(
    {
        "80 prefix_attention bfloat16 128x128 rows128 bias float8_e4m3fn",
        "80 prefix_attention bfloat16 128x128 rows128 bias int8",
        "80 target_attention bfloat16 128x128 rows128 bias reach",
        "90 kv_write bfloat16 128x128 rows128 float8_e4m3fn transposed",
        "90 softmax prefix_attention float32 64x64 rows64 bias",
    }
)
"""Codes with a bias on 8.0: the registers do not suffice, whatever the block. With a reach, by 40 bytes, and in a
softmax with a bias, by 32, where Triton 3.6 compiles. And V transposed in the highest tiles, every number of which has
an address of its own; it does little but store.
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """registers: of a thread. spilled: its bytes of local memory. shared: bytes of a program."""

    registers: int
    spilled: int
    shared: int


def path_of(version: str) -> Path:
    """The file with the limits for a version of Triton; it may be none."""
    minor = ".".join(version.split(".")[:2])
    return Path(__file__).with_name(f"limits-{minor}.json")


def versions() -> list[str]:
    """Minor versions of Triton that have limits."""
    return sorted(path.stem.removeprefix("limits-") for path in Path(__file__).parent.glob("limits-*.json"))


def granted(figures: Figures) -> Figures:
    """The limits to write for these figures: registers up to the next multiple of 8, in which they are given out."""
    return Figures(-(-figures.registers // 8) * 8, figures.spilled, figures.shared)


def failures(found: Mapping[str, Figures], limits: Mapping[str, Figures]) -> list[str]:
    """What is wrong with the figures of cases, each in a line. Keys begin with the architecture."""
    wrong = [f"{key}: has limits, but is no case" for key in limits.keys() - found.keys()]
    for key, figures in found.items():
        most = 1024 * configs.SHARED_KIB[int(key.split()[0])]
        if figures.shared > most:
            wrong.append(f"{key}: shared {figures.shared} > {most}, all that the architecture has")
        if key not in limits:
            wrong.append(f"{key}: has no limits")
            continue
        wrong += [
            f"{key}: {name} {getattr(figures, name)} > {getattr(limits[key], name)}"
            for name in ("registers", "spilled", "shared")
            if getattr(figures, name) > getattr(limits[key], name)
        ]
    return sorted(wrong)


def read(path: Path) -> dict[str, Figures]:
    """The committed limits, by case."""
    return {key: Figures(*values) for key, values in json.loads(path.read_text()).items()}


def write(path: Path, limits: Mapping[str, Figures]) -> None:
    """One case a line: registers, spilled bytes, shared bytes."""
    lines = [f"{json.dumps(key)}:{json.dumps(astuple(limits[key]), separators=(',', ':'))}" for key in sorted(limits)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
