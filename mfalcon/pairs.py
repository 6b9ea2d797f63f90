"""How many pairs of a token and a key that it sees there are in a forward: what attention costs by."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pairs:
    """Of a model, a layer on average. of_layers: most keys that a token of the prefix, and that a target, sees in each
    layer; None of a layer that sees all before it. Empty: all layers do.
    """

    of_layers: tuple[tuple[int, int] | None, ...] = ()

    def encoding(self, before: int, new: int) -> float:
        """Of new tokens behind those before, which see each other too."""
        return self._mean(
            [new * (before + new / 2) if most is None else _up_to(most[0], before, new) for most in self._all]
        )

    def scoring(self, before: int, new: int) -> float:
        """Of new targets behind a prefix."""
        return self._mean([float(new * (before if most is None else min(before, most[1]))) for most in self._all])

    def most(self, *, of_targets: bool) -> int | None:
        """Keys that a token, or a target, sees at most in any layer; None where a layer sees all."""
        known = [of[of_targets] for of in self._all if of is not None]
        return max(known) if len(known) == len(self._all) else None

    @property
    def _all(self) -> tuple[tuple[int, int] | None, ...]:
        return self.of_layers or (None,)

    @staticmethod
    def _mean(numbers: list[float]) -> float:
        return sum(numbers) / len(numbers)


def _up_to(most: int, before: int, new: int) -> float:
    """Pairs of tokens that each see all before it, but no more than `most`."""
    growing = min(max(0, most - before), new)
    return growing * (before + growing / 2) + (new - growing) * most
