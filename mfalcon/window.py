"""The window rule: which part of a history the model sees.

A function of the history's length alone, so that every replica, the trainer and the evaluator agree on it: the start
moves in steps of `chunk`, which costs one new prefill per chunk instead of one per event.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WindowRule:
    """Most events that a model sees, and the steps by which the start moves."""

    max_history: int
    chunk: int

    def start(self, history_len: int, base: int = 0) -> int:
        """First event of the window: 0 while the history fits, else the smallest multiple of the chunk that makes it
        fit. base: where the log begins, of which earlier events are not there any more.
        """
        if history_len <= self.max_history:
            return base
        return max(base, -(-(history_len - self.max_history) // self.chunk) * self.chunk)
