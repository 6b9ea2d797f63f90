"""Faults of the server itself, each described once: its name, how it is done to a process, and what may come of it.

Everybody else's requests must be answered rightly under each, or refused by a server that ends.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import grpc
import numpy as np

from loadtest.faults.broken_server import BAD_ITEM
from loadtest.faults.bystanders import PATIENCE_S
from loadtest.faults.fleet import end, guarded
from loadtest.faults.oracle import Life
from loadtest.faults.redis_server import RedisServer
from loadtest.faults.server_scene import KEYS, Scene, ServerFault
from loadtest.faults.world import Person, random_events
from loadtest.load.messages import rank_message
from mfalcon.backends.choice import REFERENCE
from mfalcon.engine.redis_parts import layout_of
from mfalcon.errors import EngineFailure
from mfalcon.history.chain import user_hash
from mfalcon.kvcache.chunk import pack, unpack

_HURRY_S = 1.0
_SPARE_BYTES = 4 << 20
"""Address space that is left where messages of this size come."""
_SPARE_BYTES_OF_NEIGHBOURS = 512 << 10
"""Enough for their small requests and far too little for a long encoding: a heap that was trimmed a moment before the
limit was set has nothing free of its own.
"""
_MESSAGE_BYTES = 4_000_000
_SENDERS = 4
_FETCHED_EVENTS = 600
_POLL_S = 0.05


def _rank(scene: Scene) -> None:
    """As often as is asked for, and its neighbours after it."""
    scene.begin()
    for number in range(scene.effort.ranks):
        scene.meet(number)
    scene.let_others_rank()


def _rank_until_it_ends(scene: Scene) -> None:
    scene.begin()
    scene.meet()
    scene.await_exit()


def _rank_a_bad_item(scene: Scene) -> None:
    """And then without it."""
    scene.begin()
    scene.meet(item=BAD_ITEM)
    scene.meet()
    scene.let_others_rank()


def _kill(scene: Scene) -> None:
    """And start it again: what it knew is gone."""
    scene.begin()
    scene.server.send(signal.SIGKILL)
    scene.await_exit()
    scene.meet(timeout_s=_HURRY_S)
    scene.server.kill()
    began = time.monotonic()
    scene.server.start()
    scene.server.wait_ready()
    scene.notes.append(f"ready again {time.monotonic() - began:.1f} s after a new start")
    scene.victim = Person(scene.victim.user_id, Life())
    scene.meet(waits=True)


def _freeze(scene: Scene) -> None:
    scene.begin()
    scene.server.send(signal.SIGSTOP)
    scene.meet(timeout_s=_HURRY_S)
    time.sleep(scene.effort.freeze_s)
    scene.server.send(signal.SIGCONT)
    scene.let_others_rank()
    scene.meet()


def _spin(scene: Scene) -> None:
    spinners = [
        guarded([sys.executable, "-c", "while True: pass"], subprocess.DEVNULL) for _ in os.sched_getaffinity(0)
    ]
    try:
        _rank(scene)
    finally:
        for spinner in spinners:
            end(spinner)


def _rank_large_in_no_space(scene: Scene) -> None:
    """Users with long histories, one after the other: each needs pages, and what its encoding takes."""
    victims = [Person(f"{scene.victim.user_id}-{number}", Life()) for number in range(scene.effort.ranks)]
    for number, person in enumerate(victims):
        scene.tell(person, random_events(number, 1_000))
    with _nearly_full(scene, _SPARE_BYTES_OF_NEIGHBOURS):
        for person in victims:
            scene.victim = person
            scene.meet()
        scene.let_others_rank()
    scene.meet()


def _send_large_in_no_space(scene: Scene) -> None:
    """Messages that are refused anyhow, some at once; and then a rank."""
    long_name = rank_message("x" * _MESSAGE_BYTES, [1]).SerializeToString()
    many = rank_message("many", np.arange(_MESSAGE_BYTES // 8)).SerializeToString()

    def send(number: int) -> str:
        with grpc.insecure_channel(scene.server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            rank: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/mfalcon.v1.Ranking/Rank")
            try:
                rank((long_name, many)[number % 2], timeout=PATIENCE_S)
                return "OK"
            except grpc.RpcError as error:
                return cast(grpc.Call, error).code().name

    with _nearly_full(scene, _SPARE_BYTES), ThreadPoolExecutor(_SENDERS) as pool:
        scene.seen.outcomes.update(pool.map(send, range(scene.effort.ranks)))
        scene.let_others_rank()
    scene.meet()


def _forge_in_redis(scene: Scene) -> None:
    """Chunks of good checksums whose last numbers are none."""
    redis, model, person = scene.redis, scene.checkpoint.model, Person("remembered", Life())
    assert redis is not None
    scene.victim, user = person, user_hash(person.user_id)
    scene.tell(person, random_events(1, _FETCHED_EVENTS))
    scene.meet()
    layout = layout_of(model, f"{scene.checkpoint.fingerprint}:{model.dtype}")
    wanted, give_up = -(-_FETCHED_EVENTS // layout.events_per_chunk), time.monotonic() + PATIENCE_S
    while len(names := _chunks(redis, user)) < wanted:
        if time.monotonic() > give_up:
            raise EngineFailure("the victim's state did not get into Redis")
        time.sleep(_POLL_S)
    for name in names:
        value = redis.command("GET", name)
        assert isinstance(value, bytes)
        header, payload = unpack(value, layout, user, None)
        redis.command("SET", name, pack(header, bytes(payload[:-16]) + b"\xff" * 16, None))
    _rank(scene)
    refused = scene.server.metric("mfalcon_chunks_rejected_total{", 'reason="finite"')
    scene.notes.append(f"chunks refused: {refused:.0f}")


def _chunks(redis: RedisServer, user: bytes) -> list[str]:
    """Their names."""
    found = redis.command("KEYS", f"{KEYS.index(user)}:*")
    assert isinstance(found, list)
    return [name.decode() for name in found if isinstance(name, bytes)]


@contextmanager
def _nearly_full(scene: Scene, spare_bytes: int) -> Iterator[None]:
    """Let the process have hardly more address space than it has."""
    pid = scene.server.pid
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    scene.begin()
    resource.prlimit(pid, resource.RLIMIT_AS, (size + spare_bytes, before[1]))
    try:
        yield
    finally:
        if scene.server.exit_code is None:
            resource.prlimit(pid, resource.RLIMIT_AS, before)


_ONE_HEAP = 'MALLOC_ARENA_MAX=1 exec "$@"'
"""Each thread has a heap of its own otherwise, of 64 MiB of address space that count although they are free."""
FAULTS = (
    ServerFault(
        "device thread ends",
        "every kernel raises from one on",
        _rank_until_it_ends,
        ("INTERNAL",),
        refuses=True,
        exit_codes=(1,),
        broken="device-lost",
    ),
    ServerFault(
        "step hangs",
        "a step that never ends, --device-stall-s 2",
        _rank_until_it_ends,
        ("UNAVAILABLE",),
        refuses=True,
        exit_codes=(1,),
        flags={"device-stall-s": "2"},
        broken="step-hangs",
    ),
    ServerFault(
        "no memory for one", "an allocation in its step fails", _rank, ("RESOURCE_EXHAUSTED",), broken="no-memory"
    ),
    ServerFault(
        "no memory left",
        "RLIMIT_AS 512 KiB above what it has, one heap, users of 1,000 events",
        _rank_large_in_no_space,
        ("right", "RESOURCE_EXHAUSTED"),
        flags={"backend": REFERENCE},
        shell=_ONE_HEAP,
    ),
    ServerFault(
        "large messages, no memory left",
        "RLIMIT_AS 4 MiB above what it has, 4 MB messages",
        _send_large_in_no_space,
        ("right", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"),
    ),
    ServerFault(
        "the same, one heap",
        "MALLOC_ARENA_MAX=1 besides",
        _send_large_in_no_space,
        ("right", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNAVAILABLE"),
        refuses=True,
        exit_codes=(0, -signal.SIGABRT),  # of gRPC's core, which cannot go on without memory
        shell=_ONE_HEAP,
    ),
    ServerFault(
        "an item of no numbers",
        "NaN weights, in memory",
        _rank_a_bad_item,
        ("right, 1 failed", "right"),
        broken="bad-item",
    ),
    ServerFault("a state of no numbers", "NaN in a page, in memory", _rank, broken="bad-state"),
    ServerFault(
        "a state of no numbers in Redis", "chunks of good checksums, set in Redis", _forge_in_redis, has_redis=True
    ),
    ServerFault(
        "poison, float32",
        "events' value 3.4e38, value_scale 0.01",
        _rank,
        value_scale=0.01,
        poison=3.4e38,
    ),
    ServerFault("poison, bfloat16", "events' value 1e38", _rank, dtype="bfloat16", value_scale=1.0, poison=1e38),
    ServerFault("poison, float16", "events' value 1e6", _rank, dtype="float16", value_scale=1.0, poison=1e6),
    ServerFault("stderr is full", "/dev/full from the start", _rank, shell='exec "$@" 2>/dev/full'),
    ServerFault("stdout is closed", "closed from the start", _rank, shell='exec "$@" >&-'),
    ServerFault("killed", "SIGKILL", _kill, ("UNAVAILABLE", "right"), refuses=True, exit_codes=(-signal.SIGKILL,)),
    ServerFault("frozen", "SIGSTOP, SIGCONT", _freeze, ("DEADLINE_EXCEEDED", "right")),
    ServerFault("busy machine", "a spinning process for each core", _spin),
)
