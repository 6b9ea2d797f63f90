"""Locust scenario: clients rank, append and prefill over gRPC for users drawn by Zipf's law.

    locust -f loadtest/load/rank_users.py --headless --host 127.0.0.1:50051 -u 20 -t 30s

Closed loop: each client sends its next request when the last is answered. An answer that is late, malformed or not
finite counts as a failure. Only Locust may import this file: it needs gevent's patches, which Locust applies first.
"""

# isort: off
import locust  # before anything that opens sockets or makes locks
import locust.argument_parser
import locust.env
import locust.exception
import locust.runners

import hashlib
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, cast

import grpc
import grpc.experimental.gevent as grpc_gevent
import numpy as np
from numpy.typing import NDArray

from proto import ranking_pb2 as pb
from proto import ranking_pb2_grpc
# isort: on

grpc_gevent.init_gevent()

_START_TIMEOUT_S = 30.0
_TOP_K = 10
_MOST_NEW_EVENTS = 5

Response = pb.RankResponse | pb.AppendEventsResponse | pb.CacheInfo


class BadAnswer(Exception):
    """A request failed, or its answer is not what the contract promises; the text groups Locust's failures."""


@locust.events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: locust.argument_parser.LocustArgumentParser) -> None:
    """Options of this scenario; each is also an environment variable, LOCUST_ and its name."""
    options: tuple[tuple[str, type, int | float | str, str], ...] = (
        ("num-users-space", int, 10_000, "Distinct user ids."),
        ("zipf", float, 1.1, "The user of rank r is drawn with weight r^-zipf; 0 is uniform."),
        ("candidates", int, 500, "Candidates of a request, at most what the server takes."),
        ("num-items", int, 1_682, "Item ids are drawn from 1 to this."),
        ("deadline-ms", int, 2_000, "Deadline of each request."),
        ("user-prefix", str, "load", "Beginning of every user id; two runs at once need two."),
        ("load-seed", int, 0, "Seed of users, items and events."),
    )
    group = parser.add_argument_group("mfalcon")
    for name, kind, default, text in options:
        group.add_argument(
            f"--{name}", type=kind, default=default, env_var=f"LOCUST_{name.upper().replace('-', '_')}", help=text
        )


@locust.events.quitting.add_listener  # type: ignore[untyped-decorator]
def fail_if_nothing_was_answered(environment: locust.env.Environment, **_: object) -> None:
    """Locust counts failures, and a server that nobody reached in time has none. A worker's are its master's."""
    total = environment.stats.total
    if total.num_requests == total.num_failures and not isinstance(environment.runner, locust.runners.WorkerRunner):
        print(f"error: no request was answered by {environment.host}", file=sys.stderr)
        environment.process_exit_code = 1


@lru_cache(maxsize=1)
def zipf_cumulative(num_users: int, exponent: float) -> NDArray[np.float64]:
    """Cumulative probability of the users of ranks 1 to num_users: [num_users]."""
    weights = np.arange(1, num_users + 1, dtype=np.float64) ** -exponent
    cumulative: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
    return cumulative


def check_rank(response: pb.RankResponse, num_candidates: int) -> None:
    """Raises BadAnswer unless there is one finite score for each candidate and task, and the top is as asked."""
    scores, task_scores = np.asarray(response.scores), np.asarray(response.task_scores)
    if len(scores) != num_candidates:
        raise BadAnswer(f"{len(scores)} scores for {num_candidates} candidates")
    if len(task_scores) != num_candidates * len(response.tasks):
        raise BadAnswer(f"{len(task_scores)} task scores for {num_candidates} candidates, {len(response.tasks)} tasks")
    if not (np.isfinite(scores).all() and np.isfinite(task_scores).all()):
        raise BadAnswer("a score is not finite")
    if response.failed:
        raise BadAnswer("the model gives a candidate no finite score")
    top = np.asarray(response.top)
    if len(top) != min(_TOP_K, num_candidates) or np.any(np.diff(scores[top]) > 0):
        raise BadAnswer("top is not the best candidates in order")


class RankUser(locust.User):
    """One client with a connection of its own, asking for many users: 90% Rank, 9% AppendEvents, 1% Prefill."""

    wait_time = locust.constant(0)
    append_locks: ClassVar[defaultdict[str, threading.Lock]] = defaultdict(threading.Lock)
    """One append at a time for each user: a history takes events in time order only."""

    def __init__(self, environment: locust.env.Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        assert options is not None
        assert self.host is not None
        worker = int(getattr(environment.runner, "worker_index", 0))  # each has user ids of its own
        self._prefix = f"{options.user_prefix}-{worker}"
        self._rng = np.random.default_rng((options.load_seed, worker, id(self)))
        self._zipf = zipf_cumulative(options.num_users_space, options.zipf)
        self._num_items = int(options.num_items)
        self._num_candidates = int(options.candidates)
        self._timeout_s = options.deadline_ms / 1e3
        self._num_actions = 1
        self._channel = grpc.insecure_channel(self.host, options=[("grpc.use_local_subchannel_pool", 1)])
        self._stub = ranking_pb2_grpc.RankingStub(self._channel)

    def on_start(self) -> None:
        """Read the server's limits."""
        try:
            model = self._stub.GetModel(pb.GetModelRequest(), timeout=_START_TIMEOUT_S, wait_for_ready=True)
        except grpc.RpcError as error:
            self._report("GetModel", 0.0, 0, _bad(error))
            raise locust.exception.StopUser from error
        self._num_candidates = min(self._num_candidates, model.max_candidates)
        self._num_actions = len(model.actions)

    def on_stop(self) -> None:
        """Close the connection."""
        self._channel.close()

    @locust.task(90)
    def rank(self) -> None:
        """Rank a new set of candidates."""
        candidates = self._rng.integers(1, self._num_items + 1, self._num_candidates).tolist()
        user_id = self._draw_user()
        request = pb.RankRequest(user_id=user_id, candidates=candidates, top_k=_TOP_K)

        def check(response: Response) -> None:
            check_rank(cast(pb.RankResponse, response), len(candidates))

        self._call("Rank", self._stub.Rank, request, user_id, check)

    @locust.task(9)
    def append_events(self) -> None:
        """Append a few events of now."""
        user_id = self._draw_user()
        items = self._rng.integers(1, self._num_items + 1, self._rng.integers(1, _MOST_NEW_EVENTS + 1)).tolist()
        actions = 1 << int(self._rng.integers(0, self._num_actions))

        def check(response: Response) -> None:
            if cast(pb.AppendEventsResponse, response).history_len < len(items):
                raise BadAnswer("the history is shorter than what was appended")

        with self.append_locks[user_id]:
            now = time.time_ns() // 1_000_000
            events = [pb.Event(item_id=item, actions=actions, value=3.0, time_ms=now) for item in items]
            request = pb.AppendEventsRequest(user_id=user_id, events=events)
            self._call("AppendEvents", self._stub.AppendEvents, request, user_id, check)

    @locust.task(1)
    def prefill(self) -> None:
        """Encode a user's history ahead of a request."""
        user_id = self._draw_user()
        self._call("Prefill", self._stub.Prefill, pb.PrefillRequest(user_id=user_id), user_id, lambda _: None)

    def _draw_user(self) -> str:
        rank = int(np.searchsorted(self._zipf, self._rng.random(), side="right"))
        return f"{self._prefix}-{min(rank, len(self._zipf) - 1)}"

    def _call(
        self,
        name: str,
        method: Callable[..., Response],
        request: pb.RankRequest | pb.AppendEventsRequest | pb.PrefillRequest,
        user_id: str,
        check: Callable[[Response], None],
    ) -> None:
        # What a load balancer hashes, so that a user's requests meet on one replica: it cannot read the message.
        key = hashlib.blake2b(user_id.encode(), digest_size=8).hexdigest()
        began, length = time.perf_counter(), 0
        failure: BadAnswer | None = None
        try:
            response = method(request, timeout=self._timeout_s, metadata=(("x-rank-key", key),))
        except grpc.RpcError as error:
            seconds, failure = time.perf_counter() - began, _bad(error)
        else:
            seconds, length = time.perf_counter() - began, response.ByteSize()
            try:
                check(response)
                if seconds > self._timeout_s:
                    raise BadAnswer("answered after the deadline")
            except BadAnswer as error:
                failure = error
        self._report(name, seconds * 1e3, length, failure)

    def _report(self, name: str, milliseconds: float, length: int, failure: BadAnswer | None) -> None:
        fields: dict[str, Any] = {"request_type": "grpc", "name": name, "response_time": milliseconds, "context": {}}
        self.environment.events.request.fire(**fields, response_length=length, response=None, exception=failure)


def _bad(error: grpc.RpcError) -> BadAnswer:
    """Status and message, without the times that make every RpcError's text another."""
    call = cast(grpc.Call, error)
    return BadAnswer(f"{call.code().name}: {call.details()}")
