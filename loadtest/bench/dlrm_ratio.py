"""A DLRM beside a generative ranker whose forward has so many times its FLOPs: who ranks more requests a second.

The HSTU paper (arXiv 2402.17152, section 4.3) says that a generative ranker of 285 times a DLRM's FLOPs is served at
1.50 times its rate at 1,024 candidates and 2.99 times at 16,384. It does not define those FLOPs. Here they are of one
forward for one (user, candidate) with nothing shared, so the length of the history follows from the ratio. Each is then
served with all that may be shared, at its own best microbatch.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor

from kernels.cpu import check
from kernels.cpu.library import FusedUnavailable
from loadtest.bench.dlrm import DlrmSize, dlrm_named, random_candidates, random_dlrm, random_user
from loadtest.bench.dlrm_pairs import RANKERS, Pair, pairs_of
from loadtest.bench.floor import prefill_work, score_work, sum_work
from loadtest.bench.peaks import Peaks, faster, probe
from loadtest.bench.shapes import REQUEST_TIME_MS, dtype_named, random_events, random_model, random_targets
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar
from loadtest.report.timing import Spread, spread
from mfalcon.algorithm import prefill, score
from mfalcon.backends.choice import AUTO, REFERENCE
from mfalcon.backends.select import serve
from mfalcon.errors import ConfigError
from mfalcon.models.base import EventTokens, Targets
from mfalcon.models.din_fused import DinFused
from mfalcon.models.din_network import DinNetwork
from mfalcon.models.din_split import DinSplit

PAPER = {1_024: 1.5, 16_384: 2.99}
"""Times the DLRM's rate, by candidates: what the paper says of a ratio of 285."""
LEAST_OF_PEAK = 0.6
"""Of the probed peak that the DLRM must reach, or its rate proves nothing about the other."""
SPLIT_BOUND, BACKEND_BOUND = 1e-6, 1e-5
"""Of differences of scores: the DLRM as served from its definition, and the ranker from its reference, in float32."""
WITHIN = 0.25
"""Of the counted law, as a share of it."""
_SWEEP_SECONDS, _SWEEP_ROUNDS = 0.6, (2, 8)
"""Of each microbatch that is tried: so long, by its first run, but at least and at most so many runs."""
_DLRM_MICROBATCHES = (64, 128, 256, 512, 1_024)
_RANKER_MICROBATCHES = (48, 96, 192, 384)
_DEVICE_MICROBATCHES = (1_024, 4_096, 16_384)
_CHECKED = 48
"""Candidates whose scores are compared."""
_PEAK_SECONDS = 1.5
_PEAK_SIZE = 8_192
"""Rows and columns of the product that is a device's peak."""
Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class RatioOptions:
    """What to measure: every DLRM with every ranker at every number of candidates.

    ratio: of the ranker's FLOPs to the DLRM's. rounds: that each is timed. device: cpu or cuda. backend: the ranker's.
    """

    ratio: float = 285.0
    dlrms: tuple[str, ...] = ("base",)
    shapes: tuple[str, ...] = ("d128L3",)
    candidates: tuple[int, ...] = (1_024, 16_384)
    rounds: int = 5
    dtype: str = "float32"
    device: str = "cpu"
    backend: str = AUTO
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Times:
    """One competitor: on the clock that is compared, and on the wall."""

    clock: Spread
    wall: Spread


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of the rates of a ranker and a DLRM: measured on the clock that is compared (median and range of the rounds), on
    the wall, and counted with the DLRM's FLOPs unshared and as served.
    """

    median: float
    least: float
    most: float
    wall: float
    counted: float
    counted_served: float

    @property
    def of_counted(self) -> float:
        """Measured over counted."""
        return self.median / self.counted


@dataclass(frozen=True, slots=True)
class RatioRow:
    """One pair at one number of candidates.

    of_peak: the DLRM's FLOPs, nothing shared, over time and peak; computed_of_peak: those that it computes when it is
    split, which is how well the cores are used. cold_of_floor,
    hit_of_floor: the ranker's counted floor over its time, None where SiLUs are not probed. breaks_even: see NOTES.
    """

    pair: Pair
    m: int
    dlrm_microbatch: int
    ranker_microbatch: int
    dlrm: Times
    ranker_cold: Times
    ranker_hit: Times
    cold: Ratio
    hit: Ratio
    of_peak: float
    computed_of_peak: float
    cold_of_floor: float | None
    hit_of_floor: float | None
    breaks_even: float

    @property
    def claims(self) -> bool:
        """Whether the DLRM is served well enough for the ratio to say something."""
        return self.of_peak >= LEAST_OF_PEAK


@dataclass(frozen=True, slots=True)
class Checked:
    """Worst difference of a model's scores from its definition's."""

    model: str
    worst: float
    bound: float

    @property
    def holds(self) -> bool:
        """Not for NaN."""
        return self.worst <= self.bound


@dataclass(frozen=True, slots=True)
class RatioResult:
    """Everything that `mfalcon bench dlrm` knows. clock: which one is compared."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: RatioOptions
    clock: Literal["CPU time", "wall time"]
    peak_flops: float
    peak_by: str
    backend: str
    dlrm_backend: str
    checked: tuple[Checked, ...]
    pairs: tuple[Pair, ...]
    rows: tuple[RatioRow, ...]
    bars: tuple[Bar, ...]

    @property
    def complaints(self) -> list[str]:
        """Scores that differ from their definitions': no time is worth anything then."""
        return [
            f"{one.model}: differs by {one.worst:.1e}, more than {one.bound:g}" for one in self.checked if not one.holds
        ]


def run(options: RatioOptions, progress: Callable[[str], None]) -> RatioResult:
    """Measure every pair. Raises ConfigError for unknown names, for a backend or a device that is not here, and for
    histories of which none may be.
    """
    dtype = dtype_named(options.dtype)
    if options.rounds < 1 or min(options.candidates, default=0) < 1:
        raise ConfigError(f"rounds, m: got {options.rounds}, {options.candidates}, must be positive")
    pairs = pairs_of(options.ratio, options.dlrms, options.shapes)
    bench = _Bench(options, dtype, _device(options.device))
    rows: list[_Timed] = []
    with torch.inference_mode():
        progress("the speed limits of this machine")
        bench.probe()
        for dlrm in dict.fromkeys(options.dlrms):
            of_dlrm = [pair for pair in pairs if pair.dlrm == dlrm and not pair.refused]
            rows += bench.rows(dlrm_named(dlrm), of_dlrm, progress) if of_dlrm else []
    done = tuple(bench.row(timed) for timed in rows)
    return RatioResult(
        benchmark="dlrm",
        machine=this_machine(bench.device if bench.device.type == "cuda" else None),
        commit=commit(),
        options=options,
        clock=bench.clock,
        peak_flops=bench.peak_flops,
        peak_by=bench.peak_by,
        backend=bench.backend,
        dlrm_backend=bench.dlrm_backend,
        checked=tuple(bench.checked),
        pairs=tuple(pairs),
        rows=done,
        bars=bars(options, done, bench.checked),
    )


def bars(options: RatioOptions, rows: Sequence[RatioRow], checked: Sequence[Checked]) -> tuple[Bar, ...]:
    """Those of the paper's ratio, of base beside d128L3. Without a DLRM that is served well none is measured."""
    found: list[Bar] = []
    of = {row.m: row for row in rows if (row.pair.dlrm, row.pair.shape) == ("base", "d128L3")}
    right = all(one.holds for one in checked)
    for m, limit in PAPER.items() if options.ratio == 285 else ():
        row = of.get(m)
        claimed = row.cold if row is not None and row.claims and right else None
        name = f"base : d128L3, m={m:,}"
        found.append(Bar.least(f"{name}: cold, times the DLRM's rate", claimed.median if claimed else None, limit))
        found.append(
            Bar.most(f"{name}: cold, off the counted", abs(claimed.of_counted - 1) if claimed else None, WITHIN)
        )
        found.append(Bar.least(f"{name}: DLRM, of the probed peak", row.of_peak if row else None, LEAST_OF_PEAK))
    found += [Bar.most(f"{one.model}: off its definition", one.worst, one.bound) for one in checked]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Taken:
    """Seconds of each round."""

    clock: list[float]
    wall: list[float]

    @property
    def times(self) -> Times:
        return Times(spread(self.clock), spread(self.wall))


@dataclass(frozen=True, slots=True)
class _Timed:
    """A row before the peaks of the whole run are known."""

    pair: Pair
    m: int
    microbatches: tuple[int, int]
    dlrm: _Taken
    cold: _Taken
    hit: _Taken


class _Ranker:
    """A ranker and its history."""

    def __init__(self, pair: Pair, dtype: torch.dtype, device: torch.device, backend: str, seed: int) -> None:
        model = random_model(RANKERS[pair.shape], dtype, seed).to(device)
        self.pair, self._device = pair, device
        self.served = serve(model, backend)
        events = random_events(pair.n, seed + 1)
        self._events = EventTokens(*(getattr(events, name).to(device) for name in EventTokens.__slots__))
        self._state = prefill(self.served, self._events)
        self._reference = None if self.served.stack.name == REFERENCE else partial(serve, model, REFERENCE)

    def targets(self, m: int, seed: int) -> Targets:
        made = random_targets(m, seed)
        return Targets(made.rows.to(self._device), made.context.to(self._device))

    def hit(self, targets: Targets, microbatch: int) -> Tensor:
        return score(self.served, self._state, targets, REQUEST_TIME_MS, microbatch)

    def cold(self, targets: Targets, microbatch: int) -> Tensor:
        return score(self.served, prefill(self.served, self._events), targets, REQUEST_TIME_MS, microbatch)

    def worst(self) -> float:
        """Difference of some scores from the reference's."""
        if self._reference is None:
            return 0.0
        targets, served = self.targets(_CHECKED, 3), self._reference()
        expected = score(served, prefill(served, self._events), targets, REQUEST_TIME_MS, _CHECKED)
        return _apart(self.cold(targets, _CHECKED), expected)


class _Bench:
    """Peaks, clock and competitors of a run."""

    def __init__(self, options: RatioOptions, dtype: torch.dtype, device: torch.device) -> None:
        self.device, self._options, self._dtype = device, options, dtype
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self.clock: Literal["CPU time", "wall time"] = "CPU time" if alone else "wall time"
        self.checked: list[Checked] = []
        self.backend, self.dlrm_backend = "", "torch"
        self._peaks: Peaks | None = None
        self._device_flops = 0.0

    @property
    def peak_flops(self) -> float:
        """Of matrix products, per second."""
        return self._device_flops if self._peaks is None else self._peaks.flops(self._dtype)

    @property
    def peak_by(self) -> str:
        """What reached it."""
        if self._peaks is None:
            return f"matmul of {_PEAK_SIZE:,}"
        return self._peaks.float32_by if self._dtype == torch.float32 else self._peaks.bfloat16_by

    def probe(self) -> None:
        """Once more: the best that was seen counts."""
        if self.device.type == "cpu":
            seen = probe(_PEAK_SECONDS)
            self._peaks = seen if self._peaks is None else faster(self._peaks, seen)
            return
        a, b = (torch.randn(_PEAK_SIZE, _PEAK_SIZE, dtype=self._dtype, device=self.device) for _ in range(2))
        seconds = min(self._timed(partial(torch.mm, a, b))[1] for _ in range(5))
        self._device_flops = max(self._device_flops, 2 * _PEAK_SIZE**3 / seconds)

    def rows(self, size: DlrmSize, pairs: Sequence[Pair], progress: Callable[[str], None]) -> Iterator[_Timed]:
        """A DLRM and all its rankers in turns, number of candidates by number of candidates."""
        options, dtype, seed = self._options, self._dtype, self._options.seed
        network = random_dlrm(size, dtype, seed).to(self.device)
        split = self._served(network)
        user, events = (part.to(self.device) for part in random_user(size, dtype, seed + 1))

        def rank(items: Tensor, microbatch: int) -> Tensor:
            return split.raw(split.user_side(user, events), items, microbatch).sigmoid()

        few = random_candidates(size, _CHECKED, dtype, seed + 2).to(self.device)
        seen = torch.ones(_CHECKED, len(events), dtype=torch.bool, device=self.device)
        plain = network.plain(user.expand(_CHECKED, -1), events.expand(_CHECKED, -1, -1), seen, few).sigmoid()
        self._check(f"DLRM {size.name}", _apart(rank(few, _CHECKED), plain), SPLIT_BOUND)
        rankers = []
        for pair in pairs:
            progress(f"{size.name} : {pair.shape}, n={pair.n:,}")
            rankers.append(_Ranker(pair, dtype, self.device, options.backend, seed))
            self.backend = rankers[-1].served.stack.name
            self._check(f"{pair.shape}, n={pair.n:,}", rankers[-1].worst(), BACKEND_BOUND)
        for m in options.candidates:
            progress(f"{size.name}: m={m:,}, microbatches")
            items = random_candidates(size, m, dtype, seed + 3).to(self.device)
            of_dlrm = self._best(partial(rank, items), m, _DLRM_MICROBATCHES)
            actions: dict[tuple[str, str], Callable[[], object]] = {("dlrm", ""): partial(rank, items, of_dlrm)}
            found = {}
            for ranker in rankers:
                targets, name = ranker.targets(m, seed + 4), ranker.pair.shape
                found[name] = self._best(partial(ranker.hit, targets), m, _RANKER_MICROBATCHES)
                actions["hit", name] = partial(ranker.hit, targets, found[name])
                actions["cold", name] = partial(ranker.cold, targets, found[name])
            progress(f"{size.name}: m={m:,}, {options.rounds} rounds")
            taken = self._turns(actions, options.rounds)
            self.probe()
            for ranker in rankers:
                name = ranker.pair.shape
                both = (of_dlrm, found[name])
                yield _Timed(ranker.pair, m, both, taken["dlrm", ""], taken["cold", name], taken["hit", name])

    def _served(self, network: DinNetwork) -> DinSplit:
        """The fastest form that is here: in float32 with the fused kernel's product."""
        if self.device.type == "cpu" and self._dtype == torch.float32:
            try:
                kernel = check.load()
            except FusedUnavailable:
                return DinSplit(network)
            self.dlrm_backend = kernel.policy.name
            return DinFused(network, kernel)
        return DinSplit(network)

    def row(self, timed: _Timed) -> RatioRow:
        """Its rates, over the best peaks of the run."""
        pair, m, shape = timed.pair, timed.m, RANKERS[timed.pair.shape]
        hit = score_work(shape, pair.n, m)
        cold = sum_work(prefill_work(shape, pair.n), hit)

        def ratio(of_ranker: _Taken, flops: int) -> Ratio:
            rounds = [mine / other for mine, other in zip(timed.dlrm.clock, of_ranker.clock, strict=True)]
            walls = [mine / other for mine, other in zip(timed.dlrm.wall, of_ranker.wall, strict=True)]
            return Ratio(
                median=statistics.median(rounds),
                least=min(rounds),
                most=max(rounds),
                wall=statistics.median(walls),
                counted=m * pair.dlrm_flops / flops,
                counted_served=m * pair.served_flops / flops,
            )

        seconds = statistics.median(timed.dlrm.clock)
        silus = None if self._peaks is None else self._peaks.silus
        floors = [None if silus is None else work.seconds(self.peak_flops, silus) for work in (cold, hit)]
        of_cold = statistics.median(timed.cold.clock)
        return RatioRow(
            pair=pair,
            m=m,
            dlrm_microbatch=timed.microbatches[0],
            ranker_microbatch=timed.microbatches[1],
            dlrm=timed.dlrm.times,
            ranker_cold=timed.cold.times,
            ranker_hit=timed.hit.times,
            cold=ratio(timed.cold, cold.flops),
            hit=ratio(timed.hit, hit.flops),
            of_peak=m * pair.dlrm_flops / seconds / self.peak_flops,
            computed_of_peak=m * pair.served_flops / seconds / self.peak_flops,
            cold_of_floor=None if floors[0] is None else floors[0] / of_cold,
            hit_of_floor=None if floors[1] is None else floors[1] / statistics.median(timed.hit.clock),
            breaks_even=m * pair.served_flops / of_cold / self.peak_flops,
        )

    def _check(self, name: str, worst: float, bound: float) -> None:
        # Rounding of bfloat16 has no such bound; laws of that type are measured by `mfalcon verify`.
        self.checked.append(Checked(name, worst, bound if self._dtype == torch.float32 else math.inf))

    def _best(self, run: Callable[[int], object], m: int, sizes: Sequence[int]) -> int:
        """The microbatch whose fastest run was the fastest."""
        usual = sizes if self.device.type == "cpu" else _DEVICE_MICROBATCHES
        tried = sorted({min(size, m) for size in usual})
        least, most = _SWEEP_ROUNDS
        rounds = max(least, min(most, int(_SWEEP_SECONDS / max(1e-9, self._timed(partial(run, tried[-1]))[0]))))
        taken = self._turns({size: partial(run, size) for size in tried}, rounds)
        return min(tried, key=lambda size: min(taken[size].clock))

    def _turns(self, actions: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, _Taken]:
        """Each once a round, after a warm-up of all."""
        taken = {name: _Taken([], []) for name in actions}
        for index in range(rounds + 1):
            for name, action in actions.items():
                clock, wall = self._timed(action)
                if index:
                    taken[name].clock.append(clock)
                    taken[name].wall.append(wall)
        return taken

    def _timed(self, action: Callable[[], object]) -> tuple[float, float]:
        """Seconds of the clock that is compared, and of the wall."""
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        self._wait()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return (cpu if self.clock == "CPU time" else wall), wall

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _apart(scores: Tensor, expected: Tensor) -> float:
    return float((scores.double() - expected.double()).abs().max())


def _device(name: str) -> torch.device:
    if name == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if name == "cpu":
        return torch.device("cpu")
    raise ConfigError(f"device: got {name!r}, must be cpu, or cuda where torch sees a CUDA device")
