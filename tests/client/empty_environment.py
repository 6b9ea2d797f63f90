"""What a user does with the installed client: `empty_environment.py TARGET NUM_ITEMS NOW_MS` prints a JSON object.

It runs in an environment that holds the client alone, so it imports nothing else of this tree.
"""

import asyncio
import json
import sys

import numpy as np

from mfalcon_client import EVENT_DTYPE, AsyncClient, Client, ClientError


def main(target: str, num_items: int, now_ms: int) -> None:
    """Append, rank in a thread and in a task, run out of time, delete."""
    candidates = np.arange(1, num_items + 1, dtype=np.int64)
    events = np.zeros(20, dtype=EVENT_DTYPE)
    events["item_id"], events["actions"], events["value"] = candidates[:20], 1, 3.0
    events["time_ms"] = now_ms - 60_000
    with Client(target, timeout_s=120) as client:
        client.wait_ready(120)
        length = client.append_events("ann", events, expected_len=0).history_len
        ranking = client.rank("ann", candidates, top_k=3, request_time_ms=now_ms)
        try:
            client.rank("ann", np.resize(candidates, client.get_model().max_candidates), timeout_s=0.001)
            late = "OK"
        except ClientError as error:
            late = error.code
        again = asyncio.run(rank_in_a_task(target, candidates, now_ms))
        client.delete_user("ann")
    said = {
        "history_len": length,
        "task_scores": ranking.task_scores.tolist(),
        "is_same": bool((ranking.task_scores == again).all()),
        "top": ranking.top.tolist(),
        "late": late,
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    }
    print(json.dumps(said))


async def rank_in_a_task(target: str, candidates: np.ndarray, now_ms: int) -> np.ndarray:
    """The scores of the tasks."""
    async with AsyncClient(target, timeout_s=120) as client:
        return (await client.rank("ann", candidates, request_time_ms=now_ms)).task_scores


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
