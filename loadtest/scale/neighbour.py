"""A neighbour that does what a server does: `python -m loadtest.scale.neighbour CHECKPOINT` scores candidates.

Additions keep a core busy, but neither its vector units nor caches and memory, which it shares with the cores beside: a
rank cost 5 to 15% less CPU time beside additions than on a machine whose cores all rank.
"""

import sys
from pathlib import Path

import torch

from loadtest.bench.busy import obey
from mfalcon.algorithm import prefill, score
from mfalcon.backends.select import serve
from mfalcon.models.base import EventTokens, Targets
from mfalcon.models.checkpoint import load

MODULE = "loadtest.scale.neighbour"
_EVENTS, _CANDIDATES = 1_000, 192


def main() -> None:
    """Obey as `loadtest.bench.busy` does."""
    torch.set_num_threads(1)
    served = serve(load(Path(sys.argv[1])).model)
    config = served.model.config
    numbers = torch.arange(min(_EVENTS, config.max_history)) % config.num_items
    with torch.inference_mode():
        state = prefill(served, EventTokens(numbers, numbers * 0, numbers.double(), numbers))
        targets = Targets(
            torch.arange(_CANDIDATES) % config.num_items, torch.zeros(len(config.context_features)).long()
        )
        obey(lambda: score(served, state, targets, _EVENTS, _CANDIDATES))


if __name__ == "__main__":
    main()
