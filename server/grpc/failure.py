"""An error of one part of a call, as a message: it says what the status and the trailers of a call of its own would."""

import math

import grpc

from mfalcon.errors import HistoryMismatch, MFalconError, Overloaded
from mfalcon.returned import Returned
from mfalcon.types import AppendOutcome, RankOutcome, Returns
from proto import ranking_pb2
from server.grpc import codec
from server.grpc.edge import STATUS
from server.outcome import UNKNOWN, outcome_of


def append_outcome(outcome: AppendOutcome) -> ranking_pb2.AppendOutcome:
    """The message of the same name."""
    if isinstance(outcome, MFalconError):
        return ranking_pb2.AppendOutcome(failure=failure(outcome))
    return ranking_pb2.AppendOutcome(appended=codec.append_response(outcome))


def rank_outcome(outcome: RankOutcome, returns: Returns) -> bytes:
    """A RankOutcome as an element of a RankBatchResponse. returns: of its request."""
    if isinstance(outcome, MFalconError):
        element = ranking_pb2.RankOutcome(failure=failure(outcome)).SerializeToString()
    else:
        element = codec.embedded(
            ranking_pb2.RankOutcome.RANKED_FIELD_NUMBER, codec.rank_response(outcome, Returned.of(outcome, returns))
        )
    return codec.embedded(ranking_pb2.RankBatchResponse.OUTCOMES_FIELD_NUMBER, element)


def part_code(outcome: AppendOutcome | RankOutcome) -> str:
    """The name of the status that a part of a call would have as a call of its own."""
    if not isinstance(outcome, MFalconError):
        return grpc.StatusCode.OK.name
    return STATUS.get(type(outcome), grpc.StatusCode.INTERNAL).name


def failure(error: MFalconError) -> ranking_pb2.Failure:
    """The message of the same name."""
    message = ranking_pb2.Failure(
        code=part_code(error),
        message=str(error),
        outcome_unknown=outcome_of(error) == UNKNOWN,
    )
    if isinstance(error, Overloaded) and error.retry_after_s is not None:
        message.retry_after_ms = math.ceil(1_000 * error.retry_after_s)
    if isinstance(error, HistoryMismatch):
        message.history_len, message.history_version = error.history_len, bytes.fromhex(error.version_hex)
    return message
