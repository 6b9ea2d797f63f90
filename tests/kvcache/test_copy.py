"""States between two pools: promoted part by part, demoted whole or onto an older state; nothing else is touched."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mfalcon.errors import EngineFailure, Overloaded
from mfalcon.kvcache.copy import CudaCopier, ThreadCopier
from mfalcon.kvcache.state import KVPool, KVShape, KVState, PlainLayout
from tests.device import needs_interpreter
from tests.operations import operations

page_copy = pytest.importorskip("kernels.gpu.page_copy")
SHAPE = KVShape(num_layers=2, num_heads=2, qk_dim=4, v_dim=7, dtype=torch.float32, device=torch.device("cpu"))
SIZE = 8
NUM_PARTS = 3
TIMEOUT_S = 60.0
CODES = [None, torch.int8, torch.float8_e4m3fn]


def pool(
    num_pages: int, codes: torch.dtype | None = None, device: str = "cpu", *, pinned: bool = False, size: int = SIZE
) -> KVPool:
    """Every page is NaN: what is not copied shows. V lies transposed in float8. Of 128 tokens they may be cut up."""
    shape = replace(SHAPE, device=torch.device(device))
    made = KVPool(PlainLayout(shape, size, codes, transposed=codes == torch.float8_e4m3fn), num_pages, pinned=pinned)
    made.slab.fill_(0xFF)
    return made


def kv(numbers: list[int], layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values that name their token, layer and head: one number in each row, so that codes keep it."""
    heads = torch.arange(SHAPE.num_heads).view(-1, 1, 1)
    row = torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1) * 4 + 2 * layer + heads
    return row.expand(-1, -1, SHAPE.qk_dim), -row.expand(-1, -1, SHAPE.v_dim)


def written(state: KVState, numbers: list[int]) -> KVState:
    """The state extended by tokens that are named by a number each."""
    device = state.pool.layout.shape.device
    longer = state.extend(torch.tensor(numbers, dtype=torch.int64, device=device))
    for layer in range(SHAPE.num_layers if numbers else 0):
        k, v = kv(numbers, layer)
        longer.write(layer, k.to(device), v.to(device))
    return longer


def assert_holds(state: KVState, numbers: list[int]) -> None:
    """Numbers are exact without codes, and near enough to tell tokens apart with them."""
    assert state.num_tokens == len(numbers)
    assert state.times.tolist() == numbers
    layout = state.pool.layout
    assert isinstance(layout, PlainLayout)
    tolerance = {None: 0.0, torch.int8: 1e-6, torch.float8_e4m3fn: 1e-6}[layout.codes]  # rows of one number
    for layer in range(SHAPE.num_layers):
        for found, expected in zip(state.read(layer), kv(numbers, layer), strict=True):
            assert ((found.cpu() - expected).abs() <= tolerance * expected.abs()).all()


class Gate:
    """Lets parts pass when it is told to."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._permits = 0
        self._open = False
        self._waiting = False
        self.passed = 0

    def __call__(self, _: int) -> None:
        with self._changed:
            self._waiting = True
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._open or self._permits, TIMEOUT_S), "nobody opened the gate"
            self._permits = max(0, self._permits - 1)
            self._waiting = False
            self.passed += 1
            self._changed.notify_all()

    def let(self, num_parts: int = 1) -> None:
        with self._changed:
            self._permits += num_parts
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def settle(self, num_parts: int) -> bool:
        """Return when the copier stands at the gate (False), or has taken all of the parts (True)."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.passed == num_parts or (self._waiting and not self._permits), TIMEOUT_S
            )
            return self.passed == num_parts


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def copier(gate: Gate) -> Iterator[ThreadCopier]:
    made = ThreadCopier(before_part=gate)
    yield made
    gate.open()
    made.close()


@pytest.fixture
def free_copier() -> Iterator[ThreadCopier]:
    made = ThreadCopier()
    yield made
    made.close()


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 8, 21])
def test_there_and_back(free_copier: ThreadCopier, num_tokens: int, codes: torch.dtype | None) -> None:
    host, device = pool(8, codes), pool(8, codes)
    numbers = list(range(num_tokens))
    here = written(host.empty(), numbers)
    there = free_copier.promote(here, device)
    assert there.pool is device
    assert_holds(there, numbers)
    free_copier.idle()
    assert not there.arriving
    back = free_copier.demote(there, host, free_copier.mark())
    assert back.pool is host and back.arrival is None
    assert_holds(back, numbers)
    assert num_tokens == 0 or back.run.pages != here.run.pages
    for layer in range(SHAPE.num_layers):
        assert all(torch.equal(*pair) for pair in zip(here.read(layer), back.read(layer), strict=True))


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("num_tokens", [1, 32, 33, 96, 97, 130])
def test_small_pages_go_up_and_come_back(free_copier: ThreadCopier, num_tokens: int, codes: torch.dtype | None) -> None:
    """A copy has pages of the size of the original, which may be whole ones of a state that was cut short."""
    host, device = pool(4, codes, size=128), pool(4, codes, size=128)
    numbers = list(range(num_tokens))
    long = written(host.empty(), numbers)
    for here in (long, long.first(num_tokens // 2)):
        there = free_copier.promote(here, device)
        free_copier.idle()
        back = free_copier.demote(there, host, free_copier.mark())
        for state in (there, back):
            assert_holds(state, numbers[: here.num_tokens])
            assert here.num_tokens == 0 or state.run.page_tokens == here.run.page_tokens
        assert_holds(written(there, [1, 2]), [*numbers[: here.num_tokens], 1, 2])
        del there, back, state
    assert device.num_free_bytes == device.num_bytes and host.num_free_bytes == host.num_bytes - long.num_bytes


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize(("older", "newer"), [(5, 20), (20, 40), (32, 33), (64, 96), (90, 97), (96, 130), (97, 130)])
def test_demotion_onto_an_older_state_of_small_pages(
    free_copier: ThreadCopier, older: int, newer: int, codes: torch.dtype | None
) -> None:
    """Only what is behind it is copied, unless the newer state has outgrown small pages: then all is."""
    host, device = pool(3, codes, size=128), pool(3, codes, size=128)
    theirs, ours = list(range(100, 100 + older)), list(range(newer))
    onto = written(host.empty(), theirs)
    longer = free_copier.demote(written(device.empty(), ours), host, free_copier.mark(), onto)
    is_moved = older <= 96 < newer
    assert_holds(longer, ours if is_moved else theirs + ours[older:])
    assert_holds(onto, theirs)
    assert longer.run.page_tokens == (32 if newer <= 96 else 128)
    host.accounts.check_integrity([onto.run, longer.run])


def test_a_promoted_state_comes_part_by_part(copier: ThreadCopier, gate: Gate) -> None:
    numbers = list(range(13))
    there = copier.promote(written(pool(2).empty(), numbers), pool(3))
    assert there.num_tokens == 13 and there.arriving
    with ThreadPoolExecutor(3) as readers:
        asked: list[Callable[[], object]] = [lambda: there.times, partial(there.read, 0), partial(there.read, 1)]
        waiting = [readers.submit(ask) for ask in asked]
        for part in range(NUM_PARTS):
            assert not any(future.done() for future in waiting[part:])
            gate.let()
            waiting[part].result(TIMEOUT_S)
            assert not gate.settle(NUM_PARTS) or part == NUM_PARTS - 1
    assert_holds(there, numbers)
    copier.idle()
    assert written(there, [99]).arrival is None


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("forked", [False, True])
@pytest.mark.parametrize(("older", "newer"), [(0, 5), (5, 5), (5, 6), (8, 9), (8, 8), (5, 20), (16, 17), (13, 31)])
def test_demotion_onto_an_older_state_copies_what_is_behind_it(
    free_copier: ThreadCopier, older: int, newer: int, forked: bool, codes: torch.dtype | None
) -> None:
    """The older state holds other numbers, as one that was rounded on its way: they stay."""
    host, device = pool(12, codes), pool(12, codes)
    theirs, ours = list(range(100, 100 + older)), list(range(newer))
    onto = written(host.empty(), theirs)
    rival = written(onto, [77, 78]) if forked else None
    before = host.accounts.num_free
    longer = free_copier.demote(written(device.empty(), ours), host, free_copier.mark(), onto)
    assert_holds(longer, theirs + ours[older:])
    assert_holds(onto, theirs)
    if rival is not None:
        assert_holds(rival, [*theirs, 77, 78])
    full = older // SIZE
    assert longer.run.pages[:full] == onto.run.pages[:full]
    lent = older % SIZE > 0 and not (forked and older < newer)
    assert before - host.accounts.num_free == -(-newer // SIZE) - full - lent


def test_a_slow_copy_keeps_its_pages(copier: ThreadCopier, gate: Gate) -> None:
    """Both sides are dropped at once: their pages are taken by others only after the copy."""
    host, device = pool(2), pool(3)
    copier.promote(written(host.empty(), list(range(9))), device)
    gc.collect()
    assert host.accounts.num_free == 0 and device.accounts.num_free == 1
    with pytest.raises(Overloaded):
        copier.promote(written(pool(2).empty(), list(range(9))), device)
    gate.open()
    copier.idle()
    assert host.accounts.num_free == 2 and device.accounts.num_free == 3


def test_full_pools_refuse(free_copier: ThreadCopier) -> None:
    host, device = pool(2), pool(2)
    here = written(host.empty(), list(range(9)))
    there = free_copier.promote(here, device)
    free_copier.idle()
    with pytest.raises(Overloaded):
        free_copier.promote(here, device)
    with pytest.raises(Overloaded):
        free_copier.demote(there, host, free_copier.mark())
    for some, state in ((host, here), (device, there)):
        some.accounts.check_integrity([state.run])
    host.reserved = 1
    with pytest.raises(Overloaded):
        free_copier.demote(written(there, [9]), host, free_copier.mark(), here)  # its page is lent, but none is left


def test_who_waits_hears_of_a_copy_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfalcon.kvcache.copy._log.disabled", True)  # pytest keeps frames and pages of what is logged

    def broken(part: int) -> None:
        if part == 2:
            raise RuntimeError("no bus")

    copier, device = ThreadCopier(before_part=broken), pool(2)
    there = copier.promote(written(pool(2).empty(), [1, 2, 3]), device)
    with pytest.raises(EngineFailure, match="no bus"):
        there.read(1)
    copier.idle()
    assert there.arriving
    longer = there.grown(7)
    with pytest.raises(EngineFailure, match="no bus"):
        longer.read(1)
    del there, longer
    gc.collect()
    assert device.accounts.num_free == 2
    copier.close()


@pytest.mark.parametrize("other", ["page_tokens", "codes", "shape"])
def test_pools_of_other_pages_are_refused(free_copier: ThreadCopier, other: str) -> None:
    layout = {
        "page_tokens": PlainLayout(SHAPE, 2 * SIZE),
        "codes": PlainLayout(SHAPE, SIZE, torch.int8),
        "shape": PlainLayout(replace(SHAPE, v_dim=8), SIZE),
    }[other]
    with pytest.raises(AssertionError):
        free_copier.promote(written(pool(2).empty(), [1]), KVPool(layout, 2))


@dataclass(eq=False)
class FakeStream:
    """Knows what was asked of it."""

    name: str
    log: list[str]


@dataclass
class FakeCuda:
    """Streams and events of a device whose copies are done at once: what is asked of them, and in which order."""

    log: list[str] = field(default_factory=list)
    threads: threading.local = field(default_factory=threading.local)
    num_streams: int = 0
    num_events: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def stream_of(self, _: torch.device) -> FakeStream:
        self.num_streams += 1
        return FakeStream(("to_device", "to_host")[self.num_streams - 1], self.log)

    @contextmanager
    def inside(self, stream: FakeStream) -> Iterator[None]:
        before, self.threads.current = self.current, stream
        yield
        self.threads.current = before

    @property
    def current(self) -> FakeStream:
        """Of the calling thread."""
        stream: FakeStream = getattr(self.threads, "current", FakeStream("compute", self.log))
        return stream

    def event(self, blocking: bool = False) -> "FakeEvent":
        self.num_events += 1
        return FakeEvent(self, self.num_events)


@dataclass(eq=False)
class FakeEvent:
    """Is reached when its device is done."""

    cuda: FakeCuda
    number: int

    def record(self, stream: FakeStream | None = None) -> None:
        self.cuda.log.append(f"{(stream or self.cuda.current).name} records {self.number}")

    def wait(self) -> None:
        self.cuda.log.append(f"{self.cuda.current.name} waits for {self.number}")

    def query(self) -> bool:
        return self.cuda.done.is_set()

    def synchronize(self) -> None:
        assert self.cuda.done.wait(TIMEOUT_S)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", fake.stream_of)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "stream", fake.inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: fake.current)
    return fake


@needs_interpreter
def test_streams_wait_for_each_other_in_this_order(cuda: FakeCuda) -> None:
    host, device = pool(4), pool(4)
    copier = CudaCopier(torch.device("cpu"))
    numbers = list(range(13))
    there = copier.promote(written(host.empty(), numbers), device)
    assert cuda.log[0] == "compute records 1"
    there.read(1)
    assert "compute waits for 3" in cuda.log
    while len(cuda.log) < 6:  # until the copying thread has queued the end
        time.sleep(0.001)
    assert [entry for entry in cuda.log if entry.startswith("to_device")] == [
        "to_device waits for 1",
        *(f"to_device records {event}" for event in (2, 3, 4)),  # a layer each, and the end
    ]
    cuda.log.clear()
    there.wait(0)
    longer = written(there, [13])
    assert cuda.log == [f"compute waits for {event}" for event in (2, 2, 2, 3)]
    assert longer.arrival is there.arrival
    cuda.log.clear()
    mark = copier.mark()
    cuda.done.set()
    copier.idle()
    back = copier.demote(longer, host, mark, written(host.empty(), numbers[:5]))
    assert cuda.log == ["compute records 5", "to_host waits for 5", "to_host records 6"]
    assert_holds(back, [*numbers, 13])
    assert not there.arriving and written(there, [14]).arrival is None
    cuda.log.clear()
    there.read(0)
    assert not cuda.log
    copier.close()


@needs_interpreter
def test_a_promotion_is_a_launch_a_layer_off_the_device_thread(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pages it has: the device thread computes and copies nothing."""
    launched, right = [], page_copy.page_copy

    def counted(*args: Any) -> None:
        launched.append(threading.get_ident())
        right(*args)

    monkeypatch.setattr(page_copy, "page_copy", counted)
    host, device, numbers = pool(64), pool(32), list(range(200))
    copier, here = CudaCopier(torch.device("cpu")), written(host.empty(), numbers)
    with operations() as ran:
        there = copier.promote(here, device)
    assert not ran
    cuda.done.set()
    copier.idle()
    assert len(launched) == SHAPE.num_layers and threading.get_ident() not in launched
    assert_holds(there, numbers)
    with operations() as ran:
        copier.demote(there, host, copier.mark())
    assert ran == ["aten::copy_"] * 25  # a page each
    copier.close()


@needs_interpreter
def test_who_waits_hears_of_a_promotion_that_failed(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfalcon.kvcache.copy._log.disabled", True)  # pytest keeps frames and pages of what is logged
    cuda.done.set()

    def broken(*args: Any) -> None:
        raise RuntimeError("no bus")

    monkeypatch.setattr(page_copy, "page_copy", broken)
    copier = CudaCopier(torch.device("cpu"))
    there = copier.promote(written(pool(2).empty(), [1, 2, 3]), pool(2))
    with pytest.raises(EngineFailure, match="no bus"):
        there.read(0)
    assert there.arriving
    copier.close()


@needs_interpreter
def test_a_stream_s_copies_keep_their_pages_until_the_event(cuda: FakeCuda) -> None:
    host, device = pool(2), pool(2)
    copier = CudaCopier(torch.device("cpu"))
    copier.promote(written(host.empty(), list(range(9))), device)
    gc.collect()
    assert host.accounts.num_free == device.accounts.num_free == 0
    cuda.done.set()
    copier.idle()
    assert host.accounts.num_free == device.accounts.num_free == 2
    copier.close()


@pytest.mark.gpu
@pytest.mark.parametrize("codes", CODES)
def test_there_and_back_on_a_device(codes: torch.dtype | None) -> None:
    host, device = pool(64, codes, pinned=True), pool(64, codes, "cuda")
    copier = CudaCopier(torch.device("cuda"))
    numbers = list(range(61))
    here = written(host.empty(), numbers)
    for _ in range(50):
        there = copier.promote(here, device)
        longer = written(there, [61, 62])
        assert_holds(longer, [*numbers, 61, 62])
        assert_holds(there, numbers)
        with ThreadPoolExecutor(1) as worker:
            back = worker.submit(copier.demote, longer, host, copier.mark(), here).result()
        assert_holds(back, [*numbers, 61, 62])
    del there, longer, back
    copier.idle()
    assert device.accounts.num_free == 64
    host.accounts.check_integrity([here.run])
    copier.close()


@pytest.mark.gpu
def test_a_page_that_a_kernel_still_reads_is_not_copied_over() -> None:
    """The kernel is queued, its state dropped, and the page promoted to at once."""
    host, device = pool(2, pinned=True), pool(1, device="cuda")
    copier = CudaCopier(torch.device("cuda"))
    here = written(host.empty(), [7] * SIZE)
    for _ in range(20):
        old = written(device.empty(), [3] * SIZE)
        torch.cuda._sleep(10_000_000)
        seen = old.read(0)[0].clone()
        del old
        there = copier.promote(here, device)
        assert torch.equal(seen.cpu(), kv([3] * SIZE, 0)[0])
        assert_holds(there, [7] * SIZE)
        del there
        copier.idle()
    copier.close()
