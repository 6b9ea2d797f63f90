"""Block sizes for one device: a bounded list of candidates for each shape of the stacks, the fastest that is right.

`mfalcon bench kernels --tune` writes `kernels/gpu/tuned/<device name>.json`, which `kernels.gpu.configs` reads,
after every shape; it needs torch, triton and numpy. A candidate must agree with the configuration that it replaces.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from kernels.gpu import configs
from kernels.gpu.configs import AttentionConfig, Device, LinearConfig
from kernels.gpu.linear import linear
from loadtest.bench.gpu_cases import PREFIX, TARGET, Case, inputs
from loadtest.bench.gpu_timing import DeviceTimer, Run, bench_device, name_of, relative_error
from loadtest.bench.kernels import BOUNDS, launch
from loadtest.report.result import as_ms, say
from loadtest.report.table import Table, as_text
from loadtest.report.timing import Spread
from mfalcon.errors import ConfigError

Config = AttentionConfig | LinearConfig
ATTENTION = tuple(
    AttentionConfig(*sizes)
    for sizes in (
        *((64, 4, 3), (64, 8, 3), (128, 8, 2), (64, 8, 2), (64, 4, 2), (128, 8, 3), (128, 4, 2), (32, 4, 4)),
        *((32, 8, 3), (64, 4, 4)),
    )
)
LINEAR = tuple(
    LinearConfig(*sizes)
    for sizes in (
        *((128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 128, 64, 4, 3), (64, 128, 64, 4, 4)),
        *((64, 256, 64, 8, 3), (128, 64, 64, 4, 4), (64, 64, 64, 4, 4), (128, 256, 64, 8, 4)),
    )
)
"""What is tried beside the configuration of the rule."""
_MUST_GAIN = 0.97
"""Of the time of the rule: less of a gain is noise."""
_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Job:
    """A launch whose block sizes are sought."""

    name: str
    run: Run
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Tuned:
    """One shape. config: the fastest that is right; kept: whether it is stored."""

    key: str
    job: str
    default: Config
    default_ms: Spread
    config: Config
    ms: Spread
    kept: bool
    rejected: tuple[str, ...]


@dataclass(slots=True)
class _Chosen:
    """Stands in for the lookups of `kernels.gpu.configs`: what was asked for, and what to answer instead."""

    instead: Config | None = None
    asked: dict[str, Config] = field(default_factory=dict)

    def attention(self, op: str, where: Device, num_bytes: int, head_dim: int, tile_rows: int) -> Config:
        default = _attention(op, where, num_bytes, head_dim, tile_rows)
        return self._answer(f"{op}/{num_bytes}/{head_dim}/{tile_rows}", default)

    def linear(self, where: Device, num_bytes: int, num_rows: int, num_out: int) -> Config:
        rows = 1 << (num_rows - 1).bit_length()
        return self._answer(f"linear/{num_bytes}/{rows}/{num_out}", _linear(where, num_bytes, num_rows, num_out))

    def _answer(self, key: str, default: Config) -> Config:
        self.asked[key] = default
        return default if self.instead is None else self.instead


_attention, _linear = configs.attention, configs.linear


def jobs(device: torch.device) -> Iterator[Job]:
    """The shapes of the stacks, those of the bars first; on a CPU one that is tiny."""
    if device.type != "cuda":
        yield _attention_job(Case(TARGET, 40, 16, 16, 1, num_heads=1), device)
        return
    for op, n, m, d in (
        *((TARGET, 4096, 2048, 128), (TARGET, 4096, 256, 256), (PREFIX, 4096, 4096, 128), (PREFIX, 4096, 4096, 256)),
        *((TARGET, 4096, 64, 128), (TARGET, 4096, 2048, 64), (PREFIX, 4096, 64, 128), (PREFIX, 4096, 64, 256)),
        *((PREFIX, 4096, 16, 128), (PREFIX, 4096, 4096, 64), (TARGET, 4096, 16, 128), (TARGET, 4096, 64, 256)),
    ):
        yield _attention_job(Case(op, n, m, d, 8 if m <= 256 and op == TARGET else 1), device)
    for rows in (65536, 2048, 256, 512, 8192, 4096, 32768, 128):
        for num_in, num_out in ((512, 2048), (1536, 512), (1024, 4096), (1024, 1024)):
            if num_in != 1024 or rows <= 32768:
                yield _linear_job(rows, num_in, num_out, device)


def tune(
    folder: Path | None, progress: Callable[[str], None], budget_s: float = 1e9, *, quick: bool = False
) -> list[Tuned]:
    """Seek the configurations of every job and store those that gain; what other shapes have there stays.

    folder: None for the one that kernels.gpu.configs reads, for a device.
    """
    begun, device = time.monotonic(), bench_device(quick=quick)
    where = configs.INTERPRETER if device.type != "cuda" else configs.device(device)
    if folder is None:
        if device.type != "cuda":
            raise ConfigError("tuned: must be given where there is no device: times of an interpreter say nothing")
        folder = configs.TUNED
    timer = DeviceTimer(device, _SECONDS if device.type == "cuda" else 0.0)
    found: list[Tuned] = []
    with torch.inference_mode():
        for job in jobs(device):
            if time.monotonic() - begun > budget_s:
                progress("the time is up")
                break
            tuned = _sought(job, timer, quick=quick)
            found.append(tuned)
            progress(f"{tuned.key}: {tuned.config if tuned.kept else 'as the rule has it'}, {as_ms(tuned.ms)}")
            if tuned.kept:
                store(folder, where.name, tuned.key, tuned.config)
    return found


def store(folder: Path, device_name: str, key: str, config: Config) -> Path:
    """Put one configuration into a device's file."""
    path = folder / f"{device_name.replace(' ', '_')}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    stored[key] = asdict(config)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.tmp")
    fresh.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path)
    return path


def table(found: list[Tuned]) -> Table:
    """For people."""
    rows = [
        (
            *(each.key, each.job, _sizes(each.default), as_ms(each.default_ms), _sizes(each.config), as_ms(each.ms)),
            *(f"{each.default_ms.median_ms / each.ms.median_ms:.2f}", str(len(each.rejected))),
        )
        for each in found
    ]
    return Table("Tuned", ("key", "at", "rule", "ms", "fastest", "ms", "gain", "rejected"), rows)


def step(file: Path, budget_s: float, commit: str | None) -> bool:
    """A step of `loadtest.bench.gpu_all`, which copies what is stored for this device."""
    print(as_text([table(tune(None, say, budget_s))]))
    return True


def _sought(job: Job, timer: DeviceTimer, *, quick: bool) -> Tuned:
    chosen = _Chosen()
    with patch.object(configs, "attention", chosen.attention), patch.object(configs, "linear", chosen.linear):
        expected = _output(job)
        ((key, default),) = chosen.asked.items()
        default_ms = timer.device(job.run)
        best, best_ms, rejected = default, default_ms, []
        candidates: tuple[Config, ...] = LINEAR if isinstance(default, LinearConfig) else ATTENTION
        for candidate in candidates[: 2 if quick else None]:
            if candidate == default:
                continue
            chosen.instead = candidate
            try:
                worst = relative_error(_output(job), expected)
                if not worst <= 2 * BOUNDS[name_of(job.dtype)]:
                    rejected.append(f"{_sizes(candidate)}: differs by {worst:.1e}")
                    continue
                ms = timer.device(job.run)
            except Exception as error:  # noqa: BLE001 (a candidate that needs more than the device has is no answer)
                rejected.append(f"{_sizes(candidate)}: {type(error).__name__}: {error}"[:200])
                continue
            if ms.median_ms < best_ms.median_ms:
                best, best_ms = candidate, ms
    kept = best_ms.median_ms < _MUST_GAIN * default_ms.median_ms
    return Tuned(key, job.name, default, default_ms, best, best_ms, kept, tuple(rejected))


def _output(job: Job) -> Tensor:
    out = job.run(0)
    assert isinstance(out, Tensor)
    return out.clone()


def _attention_job(case: Case, device: torch.device) -> Job:
    given = inputs(case, device)
    return Job(case.described, lambda index: launch(given, index % len(given.sets)), case.torch_dtype)


def _linear_job(rows: int, num_in: int, num_out: int, device: torch.device) -> Job:
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (
        torch.randn(size, num_in, generator=generator, device=device).to(torch.bfloat16) for size in (rows, num_out)
    )
    return Job(f"linear {rows} x {num_in} -> {num_out}", lambda _: linear(x, weight), torch.bfloat16)


def _sizes(config: Config) -> str:
    return "/".join(str(size) for size in asdict(config).values())
