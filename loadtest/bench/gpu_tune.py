"""Block sizes for one device: a bounded list of candidates for each shape of the stacks, the fastest that is right.

`mfalcon bench kernels --tune` writes `kernels/gpu/tuned/<device name>.json`, which `kernels.gpu.configs` reads,
after every shape; it needs torch, triton and numpy. A candidate must agree with the configuration that it replaces.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from kernels.gpu import configs
from kernels.gpu.configs import AttentionConfig, Device, Library, LinearConfig, Projection
from kernels.gpu.linear import linear
from loadtest.bench.gpu_cases import PREFIX, TARGET, Case, inputs
from loadtest.bench.gpu_timing import Clock, Place, Run, generator_on, name_of, place, relative_error
from loadtest.bench.kernels import BOUNDS, plain_launch
from loadtest.report.result import as_ms
from loadtest.report.table import Table
from loadtest.report.timing import Spread
from mfalcon.errors import ConfigError

Config = AttentionConfig | Projection
ATTENTION = tuple(
    AttentionConfig(*sizes)
    for sizes in (
        *((64, 4, 3), (64, 8, 3), (128, 8, 2), (64, 8, 2), (64, 4, 2), (128, 8, 3), (128, 4, 2), (32, 4, 4)),
        *((32, 8, 3), (64, 4, 4)),
    )
)
LINEAR: tuple[Projection, ...] = (
    Library(),
    *(
        LinearConfig(*sizes)
        for sizes in (
            *((128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (128, 128, 64, 4, 3), (64, 128, 64, 4, 4)),
            *((64, 256, 64, 8, 3), (128, 64, 64, 4, 4), (64, 64, 64, 4, 4), (128, 256, 64, 8, 4)),
        )
    ),
)
"""What is tried beside the configuration of the rule."""
_MUST_GAIN = 0.97
"""Of the time of the rule: less of a gain is noise."""
_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Job:
    """A launch whose block sizes are sought. beside: cuBLAS's product of the same sizes, if it is one; SiLU and what is
    added to its output are left out.
    """

    name: str
    run: Run
    dtype: torch.dtype
    beside: Run | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """One shape. config: the fastest that is right; kept: whether it is stored. beside_ms: of cuBLAS's product."""

    key: str
    job: str
    default: Config
    default_ms: Spread
    config: Config
    ms: Spread
    kept: bool
    rejected: tuple[str, ...]
    beside_ms: Spread | None = None


@dataclass(frozen=True, slots=True)
class _Projection:
    """A projection of a stack. num_silu: columns that pass through SiLU; 0 where a residual is added."""

    num_in: int
    num_out: int
    num_silu: int
    with_bias: bool


_DLRM_IN, _DLRM_OUT = _Projection(512, 2048, 512, True), _Projection(1536, 512, 0, False)
_NVIDIA_IN, _NVIDIA_OUT = _Projection(1024, 4096, 4096, True), _Projection(1024, 1024, 0, True)


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
    if device.type == "cpu":
        yield _attention_job(Case(TARGET, 40, 16, 16, 1, num_heads=1), device)
        return
    yield from headline_jobs(device)
    for op, n, m, d in (
        *((TARGET, 4096, 64, 128), (TARGET, 4096, 2048, 64), (PREFIX, 4096, 64, 128), (PREFIX, 4096, 64, 256)),
        *((PREFIX, 4096, 16, 128), (PREFIX, 4096, 4096, 64), (TARGET, 4096, 16, 128), (TARGET, 4096, 64, 256)),
    ):
        yield _attention_job(Case(op, n, m, d, 8 if m <= 256 and op == TARGET else 1), device)
    for rows in (65536, 2048, 256, 512, 8192, 4096, 32768, 128):
        for projection in (_NVIDIA_IN, _NVIDIA_OUT):
            if rows <= 32768:
                yield _linear_job(projection, rows, device)


def headline_jobs(device: torch.device) -> Iterator[Job]:
    """Those of the DLRM-v3 layers, and attention at the width of NVIDIA's."""
    for op, n, m, d in ((TARGET, 6673, 2048, 128), (PREFIX, 4096, 4096, 128)):
        yield _attention_job(Case(op, n, m, d, 1), device)
    for rows in (65536, 4096, 2048, 256, 16384, 512, 8192, 32768, 1024):
        for projection in (_DLRM_IN, _DLRM_OUT):
            yield _linear_job(projection, rows, device)
    for op, n, m, d, users in ((TARGET, 4096, 256, 256, 8), (PREFIX, 4096, 4096, 256, 1)):
        yield _attention_job(Case(op, n, m, d, users), device)


def tune(
    folder: Path | None,
    progress: Callable[[str], None],
    budget_s: float = 1e9,
    *,
    quick: bool = False,
    where: Place | None = None,
    wanted: Callable[[torch.device], Iterator[Job]] = jobs,
    write: Callable[[Tuned], None] = lambda _: None,
    failed: Callable[[str, str], None] = lambda *_: None,
) -> list[Tuned]:
    """Seek the configurations of every job and store those that gain; what other shapes have there stays.

    folder: None for the one that kernels.gpu.configs reads, for a device. `write` is given each as it is found; a job
    that fails ends alone, and `failed` is given its name and why.
    """
    where = where or place(_SECONDS, budget_s, quick=quick)
    device = where.device
    name = (configs.INTERPRETER if device.type == "cpu" else configs.device(device)).name
    if folder is None:
        if device.type == "cpu":
            raise ConfigError("tuned: must be given where there is no device: times of an interpreter say nothing")
        folder = configs.TUNED
    found: list[Tuned] = []
    with torch.inference_mode():
        for job in wanted(device):
            if where.time_is_up:
                progress("the time is up")
                break
            if not where.begin(job.name):
                continue
            try:
                tuned = _sought(job, where.clock, quick=quick)
                if tuned.kept:
                    store(folder, name, tuned.key, tuned.config)
            except Exception as error:  # noqa: BLE001 (whatever a device or a disk refuses ends a job, not the run)
                text = f"{type(error).__name__}: {error}"[:500]
                progress(f"{job.name}: {text}")
                failed(job.name, text)
                continue
            found.append(tuned)
            write(tuned)
            progress(f"{tuned.key}: {tuned.config if tuned.kept else 'as the rule has it'}, {as_ms(tuned.ms)}")
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
            *(f"{each.default_ms.median_ms / each.ms.median_ms:.2f}", as_ms(each.beside_ms), str(len(each.rejected))),
        )
        for each in found
    ]
    return Table("Tuned", ("key", "at", "rule", "ms", "fastest", "ms", "gain", "cuBLAS ms", "rejected"), rows)


def _sought(job: Job, clock: Clock, *, quick: bool) -> Tuned:
    chosen = _Chosen()
    with patch.object(configs, "attention", chosen.attention), patch.object(configs, "linear", chosen.linear):
        expected = _output(job)
        ((key, default),) = chosen.asked.items()
        default_ms = clock.device(job.run)
        best, best_ms, rejected = default, default_ms, []
        candidates: tuple[Config, ...] = ATTENTION if isinstance(default, AttentionConfig) else LINEAR
        for candidate in candidates[: 2 if quick else None]:
            if candidate == default:
                continue
            chosen.instead = candidate
            try:
                worst = relative_error(_output(job), expected)
                if not worst <= 2 * BOUNDS[name_of(job.dtype)]:
                    rejected.append(f"{_sizes(candidate)}: differs by {worst:.1e}")
                    continue
                ms = clock.device(job.run)
            except Exception as error:  # noqa: BLE001 (a candidate that needs more than the device has is no answer)
                rejected.append(f"{_sizes(candidate)}: {type(error).__name__}: {error}"[:200])
                continue
            if ms.median_ms < best_ms.median_ms:
                best, best_ms = candidate, ms
    kept = best_ms.median_ms < _MUST_GAIN * default_ms.median_ms
    beside_ms = None if job.beside is None else clock.device(job.beside)
    return Tuned(key, job.name, default, default_ms, best, best_ms, kept, tuple(rejected), beside_ms)


def _output(job: Job) -> Tensor:
    out = job.run(0)
    assert isinstance(out, Tensor)
    return out.clone()


def _attention_job(case: Case, device: torch.device) -> Job:
    given = cache(lambda: inputs(case, device))  # made by the first run: what it refuses ends this job alone
    return Job(case.described, lambda index: plain_launch(given(), index % len(given().sets)), case.torch_dtype)


def _linear_job(projection: _Projection, rows: int, device: torch.device) -> Job:
    generator = generator_on(device, 0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(torch.bfloat16)

    num_in, num_out, num_silu = projection.num_in, projection.num_out, projection.num_silu

    @cache
    def made() -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        bias = random(num_out) if projection.with_bias else None
        return random(rows, num_in), random(num_out, num_in), bias, None if num_silu else random(rows, num_out)

    def beside(_: int) -> Tensor:
        x, weight, bias, _residual = made()
        return torch.mm(x, weight.T) if bias is None else torch.addmm(bias, x, weight.T)

    name = f"linear {rows} x {num_in} -> {num_out}"
    return Job(name, lambda _: linear(*made(), num_silu), torch.bfloat16, beside)


def _sizes(config: Config) -> str:
    if isinstance(config, Library):
        return "cuBLAS"
    return "/".join(str(size) for size in asdict(config).values())
