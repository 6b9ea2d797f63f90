"""The server that one would write first, as a baseline: each Rank is one dense forward over [history, candidates].

    python -m loadtest.bench.masked_server --checkpoint CHECKPOINT --port 0

The wire, the model and the scores are those of `mfalcon serve`. There are no KV states, no microbatches and no fused
kernel: `loadtest.bench.peer` in plain torch, one call after the other in the order of their arrival. A call whose
deadline passed while it waited is not computed. It trusts its callers: nothing is checked, nothing is bounded.
"""

import argparse
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import torch

from loadtest.bench.peer import dense_forward
from mfalcon.cores import owned_cores
from mfalcon.models import checkpoint
from mfalcon.models.base import Targets, context_codes, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.heads import blend_weights
from mfalcon.types import EVENT_DTYPE, Events
from mfalcon.window import WindowRule
from proto import ranking_pb2 as pb
from proto import ranking_pb2_grpc

_AT_ONCE = 64
"""Calls that have been taken and wait for the model."""
_MAX_MESSAGE_BYTES = 64 << 20


class MaskedRanking(ranking_pb2_grpc.RankingServicer):
    """Histories in memory, and a model that is asked by one call at a time."""

    def __init__(self, loaded: Checkpoint) -> None:
        self._model, self._items, self._version = loaded.model, loaded.items, loaded.fingerprint
        config = loaded.model.config
        self._window = WindowRule(config.max_history, config.window_chunk)
        self._blend = torch.tensor(blend_weights(config.tasks, config.blend), dtype=torch.float64)
        self._histories: defaultdict[str, Events] = defaultdict(lambda: np.empty(0, dtype=EVENT_DTYPE))
        self._asked = threading.Lock()

    def Rank(self, request: pb.RankRequest, context: grpc.ServicerContext) -> pb.RankResponse:
        """One forward."""
        with self._asked:
            left = context.time_remaining()
            if left is not None and left <= 0:
                context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "it waited for others")
            scores = self._scores(request)
        return pb.RankResponse(
            scores=(scores @ self._blend).float().tolist(),
            tasks=[task.name for task in self._model.config.tasks],
            task_scores=scores.T.flatten().tolist(),
            model_version=self._version,
            history_len=len(self._histories[request.user_id]),
            num_scored=len(request.candidates),
        )

    def AppendEvents(self, request: pb.AppendEventsRequest, context: grpc.ServicerContext) -> pb.AppendEventsResponse:
        """To the history in memory."""
        rows = [(event.item_id, event.actions, event.value, event.time_ms) for event in request.events]
        history = np.concatenate([self._histories[request.user_id], np.array(rows, dtype=EVENT_DTYPE)])
        self._histories[request.user_id] = history
        return pb.AppendEventsResponse(history_len=len(history))

    def DeleteUser(self, request: pb.DeleteUserRequest, context: grpc.ServicerContext) -> pb.DeleteUserResponse:
        """Forget the history."""
        self._histories.pop(request.user_id, None)
        return pb.DeleteUserResponse()

    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:
        """What a load driver asks of a model."""
        config = self._model.config
        return pb.GetModelResponse(
            name=config.name,
            version=self._version,
            actions=config.actions,
            tasks=[task.name for task in config.tasks],
            max_history=config.max_history,
            architecture=config.architecture,
            backend="cpu float32 masked",
        )

    @torch.inference_mode()
    def _scores(self, request: pb.RankRequest) -> torch.Tensor:
        """[num_candidates, num_tasks], float64."""
        config, history = self._model.config, self._histories[request.user_id]
        now = request.request_time_ms or time.time_ns() // 1_000_000
        events = event_tokens(history[self._window.start(len(history)) :], self._items, torch.device("cpu"))
        rows = torch.from_numpy(self._items.keys(np.asarray(request.candidates, dtype=np.int64)))
        codes = torch.from_numpy(context_codes(config.context_features, request.context, now))
        return dense_forward(self._model, events, Targets(rows, codes), now).double()


def start(loaded: Checkpoint, port: int) -> tuple[grpc.Server, int]:
    """Listen on loopback (port 0 is any free one); the server and its port. Raises RuntimeError if it is taken."""
    options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
    server = grpc.server(ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="masked"), options=options)
    ranking_pb2_grpc.add_RankingServicer_to_server(MaskedRanking(loaded), server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, bound


def main() -> None:
    """Serve until it is killed; "ready grpc=ADDRESS" on standard output says when it can be asked."""
    parser = argparse.ArgumentParser(description="One dense forward a request: the baseline of `bench saturation`.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(owned_cores())
    server, port = start(checkpoint.load(options.checkpoint), options.port)
    print(f"ready grpc=127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
