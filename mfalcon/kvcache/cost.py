"""What encoding, scoring, moving and waiting will cost, learned from what they have cost.

A cost is speed * sum(shape[j] * feature[j]). The speed belongs to the moment: one number for all sizes, it follows a
machine that drifts by 2-3x over minutes within a dozen observations. The shape, how sizes compare, belongs to the model
and the machine and changes slowly. So one size seen today corrects every other, and a size not seen for an hour is not
forgotten, which a plain exponentially weighted fit would do.
"""

import math
import threading
from dataclasses import dataclass
from operator import mul

from mfalcon.pairs import Pairs

_SPEED_GAIN = 0.15
_CLIP = math.log(3)
"""No observation counts as further than 3x from what was expected: 100x moves the speed by 3 ** 0.15 - 1 = 18%."""
_SURPRISE = 0.3
"""A residual (of the logarithm) beyond this speaks about the speed or an accident, less and less about the shape."""
_LEARNING = 16
"""The first observations find a prior that may be far off, so they may surprise more: the first 16 times as much."""
_CELL_MEMORY = 32.0  # observations
_SWEEPS = 5
_RIDGE = 1e-3
_LEAST = 1e-4
"""Least share of its prior that a term keeps, so that no prediction is 0 and more work never costs less."""
_FIRST_MARGIN = math.log(2)
_MARGIN_STEP = 0.08


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected seconds, and the seconds that about 95 of 100 stay below."""

    seconds: float
    upper: float

    def __add__(self, other: "Estimate") -> "Estimate":
        """One after the other; the upper bounds add up, which is pessimistic."""
        return Estimate(self.seconds + other.seconds, self.upper + other.upper)

    def beside(self, other: "Estimate") -> "Estimate":
        """Both at the same time: the later of the two."""
        return Estimate(max(self.seconds, other.seconds), max(self.upper, other.upper))


NOTHING = Estimate(0.0, 0.0)
"""The cost of no work."""


class _Cost:
    """Speed and shape of one kind of work, fitted on relative error with non-negative coefficients.

    Observations are averaged in cells of like size and every cell weighs about the same in the fit, so the sizes that
    come most do not bend the rest. Until sizes differ, the prior says how the terms compare; its scale goes with the
    first observation.

    `observe` may be called from any thread: a lock orders the writers, whose sums span several statements. `predict`
    takes no lock and never waits for a fit: what it reads is one immutable tuple, replaced as a whole.
    """

    def __init__(self, prior: tuple[float, ...], num_cells: int) -> None:
        assert all(0 < term < math.inf for term in prior)
        self._prior = prior
        self._lock = threading.Lock()
        self._log_speed = self._usual_log_speed = 0.0
        self._margin = _FIRST_MARGIN
        self._num_observed = 0
        self._shape = [1.0] * len(prior)  # in units of the prior
        nothing = (0.0,) * len(prior)
        self._cells = [(0.0, nothing)] * num_cells  # weight, mean of (terms / seconds) at speed 1
        # Normal equations of the fit over the cells; the ridge draws the shape to the prior.
        self._gram = [[_RIDGE * (i == j) for j in range(len(prior))] for i in range(len(prior))]
        self._moment = [_RIDGE] * len(prior)
        self._published = (prior, math.exp(_FIRST_MARGIN))

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Seconds per unit of each feature, at the present speed."""
        return self._published[0]

    def settle(self) -> None:
        """Take the speed of this moment for the usual one: the machine was quiet while it was measured."""
        self._usual_log_speed = self._log_speed

    @property
    def slowness(self) -> float:
        """How many times as long as usual everything takes at this moment: 2 beside a busy neighbour, say."""
        return math.exp(self._log_speed - self._usual_log_speed)

    def _predict(self, features: tuple[float, ...]) -> Estimate:
        coefficients, margin = self._published
        seconds = sum(map(mul, coefficients, features))
        return Estimate(seconds, seconds * margin)

    def _observe(self, features: tuple[float, ...], cell: int, seconds: float) -> None:
        if not 0 < seconds < math.inf:  # a clock that stood still
            return
        with self._lock:
            self._num_observed += 1
            doubt = max(1.0, _LEARNING / self._num_observed)
            residual = math.log(seconds / self._predict(features).seconds)
            # Rises by 19 shares when exceeded and falls by 1 when not: at rest where 1 in 20 exceeds it.
            self._margin = max(0.0, self._margin + _MARGIN_STEP * ((residual > self._margin) - 0.05))
            residual = min(max(residual, -doubt * _CLIP), doubt * _CLIP)
            step = residual * max(_SPEED_GAIN, 1 / self._num_observed)
            self._log_speed += step
            self._reshape(features, cell, residual - step, doubt * _SURPRISE)
            speed = math.exp(self._log_speed)
            coefficients = tuple(speed * share * term for share, term in zip(self._shape, self._prior, strict=True))
            self._published = (coefficients, math.exp(self._margin))

    def _reshape(self, features: tuple[float, ...], cell: int, residual: float, surprise: float) -> None:
        """Average the observation into its cell; step to the least squares of (terms / seconds) @ shape - 1 there."""
        trust = 1 / (1 + (residual / surprise) ** 2) ** 2
        terms = tuple(map(mul, features, self._prior))
        seconds = sum(map(mul, terms, self._shape)) * math.exp(residual)
        old_weight, old = self._cells[cell]
        weight = min(old_weight + trust, _CELL_MEMORY)
        gain = trust / weight
        new = tuple([mean + gain * (term / seconds - mean) for term, mean in zip(terms, old, strict=True)])
        self._cells[cell] = weight, new
        more, less = weight / (1 + weight), old_weight / (1 + old_weight)
        for i, row in enumerate(self._gram):
            plus, minus = more * new[i], less * old[i]
            self._moment[i] += plus - minus
            for j in range(len(row)):
                row[j] += plus * new[j] - minus * old[j]
        self._descend()

    def _descend(self) -> None:
        """Coordinate descent from the last solution: a few sweeps follow it, as one observation moves it little."""
        shape, moment = self._shape, self._moment
        for _ in range(_SWEEPS):
            for i, row in enumerate(self._gram):
                share = shape[i] + (moment[i] - sum(map(mul, row, shape))) / row[i]
                shape[i] = share if share > _LEAST else _LEAST


_ALL = Pairs()
_NUM_LENGTHS = 18
_NUM_PREFIXES = 10


class _PairCost(_Cost):
    """Of new tokens that attend to those before them: a + b * new + d * before + c * pairs.

    a is the call, b the linear layers, c the pairs of attention, d what is paid for the tokens before whatever comes
    new. Default priors are of a model of 3 layers of width 256 on two CPU cores.
    """

    def __init__(
        self, call_seconds: float, new_seconds: float, before_seconds: float, pair_seconds: float, pairs: Pairs
    ) -> None:
        prior = (call_seconds, new_seconds, before_seconds, pair_seconds)
        super().__init__(prior, num_cells=_NUM_LENGTHS * _NUM_PREFIXES)
        self._pairs = pairs

    def observe(self, before: int, new: int, seconds: float) -> None:
        """Learn from one call. Nothing new or no time: nothing to learn."""
        if new > 0:
            length = min(new.bit_length(), _NUM_LENGTHS) - 1
            prefix = min((before.bit_length() + 1) // 2, _NUM_PREFIXES - 1)
            self._observe(self._features(before, new), length * _NUM_PREFIXES + prefix, seconds)

    def predict(self, before: int, new: int) -> Estimate:
        """The cost of `new` after `before`; nothing for nothing new."""
        return self._predict(self._features(before, new)) if new > 0 else NOTHING

    def _features(self, before: int, new: int) -> tuple[float, ...]:
        raise NotImplementedError


class EncodeCost(_PairCost):
    """Seconds of encoding `new` tokens after `before`, which attend to each other too: new * (before + new / 2) pairs
    where layers see all before a token.

    The state before is read and often copied: without that term one token after 3,000 is predicted a third too low.
    """

    def __init__(
        self,
        call_seconds: float = 2e-3,
        token_seconds: float = 3e-5,
        prefix_seconds: float = 1e-6,
        pair_seconds: float = 7e-8,
        pairs: Pairs = _ALL,
    ) -> None:
        super().__init__(call_seconds, token_seconds, prefix_seconds, pair_seconds, pairs)

    def _features(self, before: int, new: int) -> tuple[float, ...]:
        return 1.0, float(new), float(before), self._pairs.encoding(before, new)


class ScoreCost(_PairCost):
    """Seconds of scoring `new` candidates against `before` cached tokens: before * new pairs where layers see all."""

    def __init__(
        self,
        call_seconds: float = 5e-4,
        target_seconds: float = 5e-6,
        token_seconds: float = 1e-7,
        pair_seconds: float = 8e-9,
        pairs: Pairs = _ALL,
    ) -> None:
        super().__init__(call_seconds, target_seconds, token_seconds, pair_seconds, pairs)

    def _features(self, before: int, new: int) -> tuple[float, ...]:
        return 1.0, float(new), float(before), self._pairs.scoring(before, new)


class TransferCost(_Cost):
    """Seconds of moving bytes out of a tier, or of decoding them: latency + bytes / bandwidth."""

    def __init__(self, latency_seconds: float = 0.5e-3, bytes_per_second: float = 500e6) -> None:
        super().__init__((latency_seconds, 1 / bytes_per_second), num_cells=48)

    def observe(self, num_bytes: int, seconds: float) -> None:
        """Learn from one transfer."""
        self._observe((1.0, float(num_bytes)), min(num_bytes.bit_length(), 47), seconds)

    def predict(self, num_bytes: int) -> Estimate:
        """The cost of one transfer; of 0 bytes, the latency."""
        return self._predict((1.0, float(num_bytes)))


_STEP_GAIN = 0.02
_STEP_CLIP = 15.0
_MOST_MARGIN = math.log(8)


class Pace:
    """What steps of the device really take of what was predicted of them: a factor, and how far single steps are off.

    The factor has in it what no prediction knows: the time between two steps, a neighbour on the cores. Its memory is
    long (50 steps), and a step counts as at most 15 times what was expected or is usual. Not to be used by two threads
    at once.
    """

    def __init__(self, step_seconds: float = 2e-3) -> None:
        """step_seconds: of one step, until some have been seen."""
        self._predicted = self._actual = step_seconds
        self._margin = _FIRST_MARGIN
        self._num_observed = 0

    def observe(self, predicted: float, seconds: float) -> None:
        """Learn from one step. A step of which nothing was predicted teaches nothing."""
        if not (predicted > 0 and 0 < seconds < math.inf):
            return
        expected = self._actual / self._predicted * predicted
        residual = math.log(seconds / expected)
        seconds = min(seconds, _STEP_CLIP * max(expected, self._actual))
        self._num_observed += 1
        gain = max(_STEP_GAIN, 1 / (1 + self._num_observed))  # the prior counts as one step
        self._predicted += gain * (predicted - self._predicted)
        self._actual += gain * (seconds - self._actual)
        margin = self._margin + _MARGIN_STEP * ((residual > self._margin) - 0.05)  # as that of `_Cost`
        self._margin = min(max(0.0, margin), _MOST_MARGIN)

    def predict(self, predicted: float, num_steps: float) -> Estimate:
        """What so many steps, of which so much was predicted in all, will take. The more they are, the less does it
        matter how far one is off.
        """
        seconds = self._actual / self._predicted * predicted
        return Estimate(seconds, seconds + seconds * math.expm1(self._margin) / math.sqrt(max(1.0, num_steps)))
