"""Two replicas behind Envoy on one Redis: shows that a user stays on one, and what happens when that one is killed.

python -m loadtest.balance.pair            # stays up until Ctrl-C, for requests of your own
python -m loadtest.balance.pair --once
"""

import argparse
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest.balance.balancer import Balancer
from loadtest.balance.group import group
from loadtest.bench.some_checkpoint import some_checkpoint
from mfalcon.errors import EngineFailure, MFalconError
from mfalcon.models.manifest import load_items
from mfalcon_client import EVENT_DTYPE, Client, ClientError, Ranking

_USER = "ann"
_EVENTS = 100
_CANDIDATES = 500
_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended before it was up."""
_WRITTEN_S = 10.0
"""What Envoy may take to write a line of its log."""


def show(checkpoint: Path, say: Callable[[str], None], stay: Callable[[], None]) -> None:
    """Start everything, rank, kill the replica that answered, rank again; end everything when `stay` returns.

    Raises EngineFailure if the same request has other scores or the same replica, and ClientError if it has none.
    """
    with group(checkpoint, 2) as running:
        assert running.balancer is not None
        balancer, replicas = running.balancer, {one.grpc: one for one in running.replicas}
        say(f"replicas at {' and '.join(replicas)}, Envoy at {balancer.grpc} for gRPC and for HTTP")
        items, now = load_items(checkpoint).item_id, time.time_ns() // 1_000_000
        with Client(balancer.grpc) as client:
            client.append_events(_USER, _history(items, now), expected_len=0)

            def ask(what: str) -> tuple[str, Ranking]:
                seen = len(balancer.calls())
                answer = client.rank(_USER, items[:_CANDIDATES], request_time_ms=now)
                replica = _replica_of(balancer, seen)
                found = f"state from {answer.cache.source.name}, {answer.cache.encoded_tokens} tokens encoded"
                say(f"{what:<24} {replica}  {found}")
                return replica, answer

            first, scored = ask("first rank")
            again, same = ask("the same again")
            replicas[first].kill()
            other, moved = ask("its replica is killed")
        if not (first == again != other and np.array_equal(scored.scores, same.scores)):
            raise EngineFailure(f"answered by {first}, {again} and {other}, or with other scores")
        worst = float(np.abs(scored.scores - moved.scores).max())
        say(f"max |score of {first} - score of {other}| = {worst:.1e}")
        stay()


def _history(items: NDArray[np.int64], now_ms: int) -> NDArray[np.void]:
    events = np.zeros(_EVENTS, dtype=EVENT_DTYPE)
    events["item_id"], events["actions"], events["value"] = np.resize(items, _EVENTS), 1, 3.0
    events["time_ms"] = now_ms - _EVENTS + np.arange(_EVENTS)
    return events


def _replica_of(balancer: Balancer, seen: int) -> str:
    """Who answered the call behind the first `seen` ones of the log."""
    give_up = time.monotonic() + _WRITTEN_S
    while len(calls := balancer.calls()) <= seen:
        if time.monotonic() > give_up:
            raise EngineFailure("the balancer's log has no line of the call")
        time.sleep(0.05)
    return str(calls[-1]["replica"])


def _until_stopped() -> None:
    print("up until Ctrl-C", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Two replicas behind Envoy on one Redis.")
    parser.add_argument("--checkpoint", type=Path, help="to serve; the demo's, or random weights where it is not there")
    parser.add_argument("--once", action="store_true", help="end after what it shows")
    given = parser.parse_args()
    try:
        with some_checkpoint(given.checkpoint) as path:
            show(path, lambda text: print(text, flush=True), (lambda: None) if given.once else _until_stopped)
    except (MFalconError, ClientError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


if __name__ == "__main__":
    main()
