"""The ranker and the requests of `gpu_engine`: of DLRM-v3's width, and something tiny for a rehearsal."""

from dataclasses import dataclass

from loadtest.bench.shapes import Shape

NUM_ITEMS = 10_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """long, short: events of users. rounds: of each measurement. few: users that take turns where the device holds only
    three. many: that ask at once.
    """

    device: str
    dtype: str
    shape: Shape
    max_history: int
    long: int
    short: int
    m: int
    rounds: int
    few: int
    many: int


REAL = Sizes("cuda", "bfloat16", Shape("engine", 5, 512, 4), 8_192, 6_673, 1_024, 256, 40, 5, 32)
REHEARSAL = Sizes("cpu", "float32", Shape("engine", 1, 32, 2), 256, 200, 50, 16, 2, 5, 4)
