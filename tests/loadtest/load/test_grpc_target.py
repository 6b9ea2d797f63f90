"""What a driver sends over gRPC is what the client would send, and bears the key of its user."""

import numpy as np

from loadtest.load.grpc_target import GrpcTarget
from loadtest.load.messages import append_message, rank_message
from mfalcon.types import EVENT_DTYPE
from mfalcon_client import rank_key
from proto import ranking_pb2 as pb
from tests.client.scripted import RANKED, raw, says, scripted


async def test_calls_are_whole_and_bear_the_key() -> None:
    candidates, events = np.array([3, 1, 2]), np.ones(2, dtype=EVENT_DTYPE)
    with scripted(says(RANKED), raw(b"")) as script:
        target = GrpcTarget(script.address, 1)
        await target.rank("ann", target.rank_body(candidates, 5), 1.0)
        await target.append("ann", target.append_body(events))
        await target.delete("ann")
        await target.close()
    rank, append, delete = script.asked
    assert {asked.metadata["x-rank-key"] for asked in script.asked} == {rank_key("ann")}
    assert pb.RankRequest.FromString(rank.request) == rank_message("ann", candidates, request_time_ms=5)
    assert pb.AppendEventsRequest.FromString(append.request) == append_message("ann", events, None)
    assert pb.DeleteUserRequest.FromString(delete.request) == pb.DeleteUserRequest(user_id="ann")
    assert list(rank_message("ann", candidates).candidates) == [3, 1, 2]
