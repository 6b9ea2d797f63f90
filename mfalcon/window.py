"""The window rule: which part of a history the model sees.

A function of the history's length alone, so that every replica, the trainer and the evaluator agree on it: the start
moves in steps of `window_chunk`, which costs one new prefill per chunk instead of one per event.
"""


def window_start(history_len: int, max_history: int, window_chunk: int) -> int:
    """First event of the window: 0 while the history fits, else the smallest multiple of the chunk that makes it
    fit.
    """
    if history_len <= max_history:
        return 0
    return -(-(history_len - max_history) // window_chunk) * window_chunk
