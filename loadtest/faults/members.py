"""An ensemble whose members are real processes, and what becomes of its answers while one after the other is lost."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from loadtest.faults.redis_server import RedisServer
from loadtest.faults.server_process import ServerProcess
from mfalcon.merging.merge import Merge
from mfalcon.models.items import ItemTable
from mfalcon.models.manifest import load_items
from mfalcon.types import EVENT_DTYPE, NO_SCORE, TaskInfo
from mfalcon_client import Client, ClientError, Ranking, Retry

WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}
"""a is a model of the server that is asked, b and c are each another replica's."""
BOUND = 1e-6
USER = "ann"
NOW_MS = 1_700_000_000_000
FLOODS = 6
_BACK_S = 30.0
_PATIENT_S = 30.0
_FLOOD = """
import sys
import numpy as np
from mfalcon_client import Client, ClientError, Retry
with Client(sys.argv[1], retry=Retry(attempts=1)) as client:
    ids = np.resize(np.array(sys.argv[3].split(","), dtype=np.int64), 16_384)
    while True:
        try:
            client.rank(sys.argv[2], ids, model="c", timeout_s=10)
        except ClientError:
            pass
"""


@dataclass(frozen=True, slots=True)
class Effort:
    """ranks: under each fault. budget_ms: of the merge. soak: ranks in a row while a member is frozen."""

    ranks: int = 40
    candidates: int = 200
    events: int = 60
    budget_ms: int = 200
    soak: int = 2_000


@dataclass(frozen=True, slots=True)
class MemberRow:
    """What happened under a fault. outcomes: how often the member that it befell ended so. wrong: answers that are not
    the offline merge of those that arrived. worst_ms: longest time of a call as the client sees it; late_ms: of one in
    which a member was waited for in vain, over the budget. errors: by their code.
    """

    fault: str
    ranks: int
    outcomes: dict[str, int]
    partial: int
    wrong: int
    errors: dict[str, int]
    worst_ms: float
    late_ms: float


class MemberScene:
    """Three servers on one Redis, and a user with a history. Entered once; `measure` runs every fault."""

    def __init__(self, checkpoints: Sequence[Path], effort: Effort) -> None:
        self._checkpoints = list(checkpoints)
        self.effort = effort
        self._stack = ExitStack()

    def __enter__(self) -> "MemberScene":
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="mfalcon-")))
            redis = stack.enter_context(RedisServer())
            flags = ("--redis-url", redis.url, "--threads", "1", "--kv-budget-mb", "64")
            self.b, self.c = (
                ServerProcess(path, scratch, (*flags, "--model-name", name, "--queue-size", size))
                for path, name, size in zip(self._checkpoints[1:], "bc", ("1024", "1"), strict=True)
            )
            config = scratch / "ensembles.toml"
            config.write_text(self._toml("some", 1, "abc") + self._toml("far", 1, "bc") + self._toml("all", 3, "abc"))
            self.a = ServerProcess(
                self._checkpoints[0], scratch, (*flags, "--model-name", "a", "--config", str(config))
            )
            for server in (self.b, self.c):
                server.start()
                stack.callback(server.kill)
            for server in (self.b, self.c):
                server.wait_ready()
            stack.enter_context(self.a)
            once = Retry(attempts=1)
            self._clients = {
                name: stack.enter_context(Client(server.grpc, retry=once))
                for name, server in (("a", self.a), ("b", self.b), ("c", self.c))
            }
            self._prepare(load_items(self._checkpoints[0]))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def rank(self, model: str = "some") -> Ranking:
        """One call. Raises ClientError."""
        return self._clients["a"].rank(
            USER, self._ids, top_k=10, request_time_ms=NOW_MS, model=model, timeout_s=_PATIENT_S
        )

    def is_right(self, ranking: Ranking) -> bool:
        """Whether an answer is the offline merge of the members that arrived."""
        arrived = [member.model for member in ranking.members if member.arrived]
        merged = Merge("logit", self._tasks)(
            [self._alone[name] for name in arrived], [WEIGHTS[name] for name in arrived]
        )
        said = np.concatenate([ranking.scores, ranking.task_scores.ravel()])
        expected = np.concatenate([merged.scores, merged.task_scores.ravel()])
        return (
            float(np.abs(said - expected).max()) <= BOUND
            and ranking.partial_merge == (len(arrived) < len(ranking.members))
            and ranking.top.tolist() == merged.top(10).tolist()
        )

    def observe(self, fault: str, member: str, model: str = "some", ranks: int = 0) -> MemberRow:
        """Ask again and again."""
        outcomes, errors, partial, wrong, times, late = Counter[str](), Counter[str](), 0, 0, [0.0], [0.0]
        num = ranks or self.effort.ranks
        for _ in range(num):
            began = time.monotonic()
            try:
                ranking = self.rank(model)
            except ClientError as error:
                errors[error.code] += 1
                times.append(time.monotonic() - began)
                continue
            times.append(time.monotonic() - began)
            told = next(each for each in ranking.members if each.model == member)
            outcomes[told.error.partition(":")[0] or "arrived"] += 1
            if any(each.error.startswith("late") for each in ranking.members):
                late.append(times[-1] - self.effort.budget_ms / 1e3)
            partial += ranking.partial_merge
            wrong += not self.is_right(ranking)
        worst, over = 1e3 * max(times), 1e3 * max(late)
        return MemberRow(fault, num, dict(outcomes), partial, wrong, dict(errors), worst, over)

    def whole_again(self) -> float:
        """Seconds until all members arrive; nobody but the clock helps. Raises TimeoutError."""
        began = time.monotonic()
        while time.monotonic() - began < _BACK_S:
            ranking = self.rank()
            if not ranking.partial_merge:
                assert self.is_right(ranking)
                return time.monotonic() - began
            time.sleep(0.05)
        raise TimeoutError(f"the members are not back: {ranking.members}")

    @contextmanager
    def frozen(self, *servers: ServerProcess) -> Iterator[None]:
        """Stand still meanwhile."""
        for server in servers:
            server.send(signal.SIGSTOP)
        try:
            yield
        finally:
            for server in servers:
                server.send(signal.SIGCONT)

    @contextmanager
    def killed(self, server: ServerProcess) -> Iterator[None]:
        """Be gone meanwhile, and come back on the same port."""
        server.kill()
        try:
            yield
        finally:
            server.start()
            server.wait_ready()

    @contextmanager
    def overloaded(self, server: ServerProcess) -> Iterator[None]:
        """Have processes of their own ask a replica for more than it can do; at c one request may wait."""
        ids = ",".join(map(str, self._ids.tolist()))
        command = [sys.executable, "-c", _FLOOD, server.grpc]
        floods = [subprocess.Popen([*command, f"flood-{number}", ids]) for number in range(FLOODS)]
        try:
            while server.metric("mfalcon_requests_total{", 'verb="rank"') < 2 * FLOODS:
                time.sleep(0.05)
            yield
        finally:
            for flood in floods:
                flood.kill()
                flood.wait()

    def held(self) -> tuple[int, int, int]:
        """Descriptors, threads and KiB of memory of the server that is asked."""
        status = Path(f"/proc/{self.a.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        descriptors = len(list(Path(f"/proc/{self.a.pid}/fd").iterdir()))
        return descriptors, int(fields["Threads"]), int(fields["VmRSS"].split()[0])

    def _prepare(self, items: ItemTable) -> None:
        rng, effort = np.random.default_rng(0), self.effort
        events = np.zeros(effort.events, dtype=EVENT_DTYPE)
        events["item_id"] = rng.choice(items.item_id, effort.events)
        events["actions"], events["value"] = 1, 4.0
        events["time_ms"] = NOW_MS - 10**9 + np.arange(effort.events) * 10**6
        self._ids = rng.choice(items.item_id, effort.candidates)
        self._clients["a"].append_events(USER, events, expected_len=0)
        model = self._clients["a"].get_model("a")
        self._tasks = tuple(
            TaskInfo(task.name, "binary" if task.kind == "binary" else "regression", task.weight)
            for task in model.task_infos
        )
        self._alone = {
            name: client.rank(USER, self._ids, request_time_ms=NOW_MS, model=name, timeout_s=_PATIENT_S).task_scores
            for name, client in self._clients.items()
        }
        assert all(NO_SCORE not in scores for scores in self._alone.values())
        self.whole_again()

    def _toml(self, name: str, min_members: int, members: str) -> str:
        where = {"b": f'address = "{self.b.grpc}", ', "c": f'address = "{self.c.grpc}", '}
        tables = ", ".join(f'{{model = "{m}", {where.get(m, "")}weight = {WEIGHTS[m]}}}' for m in members)
        return (
            f'[[ensembles]]\nname = "{name}"\nmin_members = {min_members}\n'
            f"merge_budget_ms = {self.effort.budget_ms}\nmembers = [{tables}]\n"
        )


FAULTS = (
    "none",
    "one frozen",
    "one killed",
    "one overloaded",
    "all but the server's own lost",
    "all late",
    "fewer than needed",
)


def measure(scene: MemberScene, faults: Collection[str] = FAULTS) -> Iterator[MemberRow]:
    """These faults in turn; between two of them all members are back. Raises TimeoutError if one does not come back."""
    for fault in FAULTS:
        if fault in faults:
            yield _under(scene, fault)
            scene.whole_again()


def _under(scene: MemberScene, fault: str) -> MemberRow:
    few = max(3, scene.effort.ranks // 4)
    with ExitStack() as stack:
        match fault:
            case "one frozen" | "fewer than needed":
                stack.enter_context(scene.frozen(scene.b))
            case "all but the server's own lost" | "all late":
                stack.enter_context(scene.frozen(scene.b, scene.c))
            case "one killed":
                stack.enter_context(scene.killed(scene.c))
            case "one overloaded":
                stack.enter_context(scene.overloaded(scene.c))
        befalls = "c" if fault in ("one killed", "one overloaded") else "b"
        model = {"all late": "far", "fewer than needed": "all"}.get(fault, "some")
        return scene.observe(fault, befalls, model, scene.effort.ranks if model == "some" else few)
