"""Fetch or recompute: the choice between two estimates, and why."""

from dataclasses import dataclass
from typing import Literal

from mfalcon.kvcache.cost import Estimate

Choice = Literal["fetch", "recompute"]
Reason = Literal["cheaper", "meets deadline", "only way", "takes too long", "redis unavailable"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What was chosen. `fetch` is None where there was nothing to fetch."""

    choice: Choice
    reason: Reason
    fetch: Estimate | None
    recompute: Estimate

    def explain(self) -> str:
        """One line for traces, the chosen way first."""
        if self.fetch is None:
            return f"recompute {_ms(self.recompute)}: {self.reason}"
        ways = [("fetch", self.fetch), ("recompute", self.recompute)]
        if self.choice == "recompute":
            ways.reverse()
        (chosen, ours), (rejected, theirs) = ways
        sign = "<" if ours.seconds < theirs.seconds else "=" if ours.seconds == theirs.seconds else ">"
        return f"{chosen} {_ms(ours)} {sign} {rejected} {_ms(theirs)}: {self.reason}"


def decide(
    fetch: Estimate | None, recompute: Estimate, time_left: float | None, without_fetch: Reason = "only way"
) -> Decision:
    """The way expected to be cheaper, unless it may miss the deadline and the other should not.

    time_left: seconds to the deadline, None without one. without_fetch: the reason to give when `fetch` is None.
    Of equals, recompute: it moves no bytes.
    """
    if fetch is None:
        return Decision("recompute", without_fetch, None, recompute)
    fetch_wins = fetch.seconds < recompute.seconds
    if time_left is not None:
        ours, theirs = (fetch, recompute) if fetch_wins else (recompute, fetch)
        if theirs.upper <= time_left < ours.upper:
            return Decision("recompute" if fetch_wins else "fetch", "meets deadline", fetch, recompute)
    return Decision("fetch" if fetch_wins else "recompute", "cheaper", fetch, recompute)


def _ms(estimate: Estimate) -> str:
    return f"{estimate.seconds * 1e3:.1f} ms (<= {estimate.upper * 1e3:.1f})"
