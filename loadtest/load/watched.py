"""What a run did to its server: figures of its processes over time, the slope of each, and what is said of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.load.slope import Slope, slope_of

NOTES = (
    "slope: least squares over the last 80% of the run, an hour; its 95% interval is of 20 block means, since samples "
    "that follow each other are alike",
    "grows: the interval is above zero, and the slope above what is borne an hour (memory 1 MiB, descriptors .5, "
    "threads .5); KV states, queue and goodput are told, not judged",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """What is sampled. borne: growth an hour that is no fault; None where growth is not judged."""

    name: str
    unit: str = ""
    borne: float | None = None

    @property
    def label(self) -> str:
        """The name with the unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


MEMORY = Figure("memory", "MiB", borne=1.0)
"""1 MiB an hour is 168 MiB a week, the time from one rollout to the next. At 20 requests a second it is 15 bytes a
request: less than the smallest object of Python.
"""
DESCRIPTORS = Figure("descriptors", borne=0.5)
THREADS = Figure("threads", borne=0.5)
"""Both are whole numbers: one that starts late in a run is no trend, one every few minutes is."""
STATES = Figure("KV states", "MiB")
QUEUE = Figure("queue", "jobs")
GOODPUT = Figure("goodput", "requests/s")

_GROWS = "GROWS"


@dataclass(frozen=True, slots=True)
class Series:
    """A figure over a run. of: the process, model or class whose it is. values: one a sample, None where it was absent.

    slope: None for too few samples.
    """

    figure: Figure
    of: str
    values: tuple[float | None, ...]
    first: float
    last: float
    most: float
    slope: Slope | None
    verdict: str

    @property
    def grows(self) -> bool:
        """Beyond noise, and by more than is borne."""
        return self.verdict == _GROWS


@dataclass(frozen=True, slots=True)
class Watched:
    """A run as its server told it. seconds: of the samples, from the first on. missed: those that nobody answered."""

    seconds: tuple[float, ...]
    missed: int
    series: tuple[Series, ...]

    def complaints(self) -> Iterator[str]:
        """What grows, and what cannot be judged."""
        judged = [one for one in self.series if one.figure.borne is not None]
        if not judged:
            yield f"the server told nothing of its processes; {self.missed} samples were missed"
        for one in judged:
            if one.slope is None:
                yield f"{one.figure.name} of {one.of}: {one.verdict} to judge it"
            elif one.grows:
                unit = f" {one.figure.unit}" if one.figure.unit else ""
                yield f"{one.figure.name} of {one.of} grows by {one.slope.per_hour:,.2f}{unit} an hour"


def series_of(figure: Figure, of: str, seconds: Sequence[float], values: Sequence[float | None]) -> Series | None:
    """None if it was never there."""
    there = [(second, value) for second, value in zip(seconds, values, strict=True) if value is not None]
    if not there:
        return None
    numbers = [value for _, value in there]
    slope = slope_of([second for second, _ in there], numbers)
    return Series(
        figure=figure,
        of=of,
        values=tuple(values),
        first=numbers[0],
        last=numbers[-1],
        most=max(numbers),
        slope=slope,
        verdict=_verdict(slope, figure.borne),
    )


def _verdict(slope: Slope | None, borne: float | None) -> str:
    if slope is None:
        return "too few samples"
    if slope.zero_within_noise:
        return "zero within noise"
    if slope.high < 0:
        return "falls"
    if borne is None:
        return "rises"
    return _GROWS if slope.per_hour > borne else f"rises by less than {borne:g}"
