"""Who holds which page of a pool: free list, reference counts, pins. No memory and no torch: pages are numbers.

A run is the pages of one KV state, in token order. Runs of one lineage share pages; a page goes back to the free list
when the last run that holds it is gone.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mfalcon.errors import Overloaded


class PageRun:
    """The pages of one KV state. They are held until nobody has the run any more; no page is ever freed by hand."""

    __slots__ = ("__weakref__", "_accounts", "pages", "pins")

    def __init__(self, accounts: "BlockPool", pages: tuple[int, ...]) -> None:
        self._accounts = accounts
        self.pages = pages
        self.pins = 0

    def __del__(self) -> None:
        self._accounts.left.append(self.pages)  # any thread, at any moment: nothing here may wait for a lock


@dataclass(frozen=True, slots=True)
class Growth:
    """A longer run. copy: (from, to) where the last page had to be copied first, because it is not this run's alone to
    write on.
    """

    run: PageRun
    copy: tuple[int, int] | None


class BlockPool:
    """The accounts of a pool of `num_pages` pages, of `page_tokens` tokens each. Any thread may call any method.

    on_more: called under the lock to add pages to a pool without a limit; None for one of fixed size.
    """

    def __init__(self, num_pages: int, page_tokens: int, on_more: Callable[[], int] | None = None) -> None:
        self.page_tokens = page_tokens
        self.left: deque[tuple[int, ...]] = deque()
        """Pages of runs that are gone, until `_settle` has counted them."""
        self._num_pages = num_pages
        self._on_more = on_more
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = [0] * num_pages
        self._written = [0] * num_pages
        self._lock = threading.Lock()
        self._room_makers: tuple[Callable[[], bool], ...] = ()

    @property
    def num_pages(self) -> int:
        """All pages."""
        return self._num_pages

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        with self._lock:
            self._settle()
            return len(self._free)

    def make_room_with(self, make_room: Callable[[], bool]) -> Callable[[], None]:
        """Whom to ask to let go of a run when too few pages are free; it answers False when it has none to drop.

        Of several, who came first is asked first: of two models on one pool the older one gives way. Returns what ends
        the asking.
        """
        with self._lock:
            self._room_makers += (make_room,)

        def leave() -> None:
            with self._lock:
                self._room_makers = tuple(one for one in self._room_makers if one is not make_room)

        return leave

    def empty(self) -> PageRun:
        """A run of no pages."""
        return PageRun(self, ())

    def first(self, run: PageRun, num_tokens: int) -> PageRun:
        """A run of the pages of the first num_tokens tokens of a run, shared with it."""
        with self._lock:
            pages = run.pages[: -(-num_tokens // self.page_tokens)]
            for page in pages:
                self._holders[page] += 1
            return PageRun(self, pages)

    def grow(self, run: PageRun, num_tokens: int, num_new: int, leaving: int = 0) -> Growth:
        """A run for num_new tokens behind the first num_tokens of a run, which stays as it is.

        The newest run of a lineage lends its last page: the rest of that page is written in place, once. leaving: pages
        that must stay free for others. Raises Overloaded; what others were asked to drop is dropped then all the same,
        unless even all of it were too little.
        """
        made_room = True
        while True:
            with self._lock:
                self._settle()
                missing = self._missing(run, num_tokens, num_new, leaving)
                if missing <= 0:
                    return self._grow(run, num_tokens, num_new)
                held = self._num_pages - len(self._free)
            if not made_room or missing > held:
                raise Overloaded(
                    f"the memory for KV states ({self._num_pages} pages) is in use, {missing} more pages are needed; "
                    "try again later"
                )
            made_room = any(make_room() for make_room in self._room_makers)

    def check_integrity(self, runs: Iterable[PageRun]) -> None:
        """AssertionError unless free and held pages are all pages, and `runs` are exactly what holds them."""
        with self._lock:
            self._settle()
            held = Counter(page for run in runs for page in run.pages)
            assert len(self._free) == len(set(self._free)), "a page is free twice"
            assert not held.keys() & set(self._free), "a held page is free"
            assert len(self._free) + len(held) == self._num_pages, "a page is neither free nor held, or both"
            assert all(self._holders[page] == held[page] for page in range(self._num_pages)), "a count is wrong"

    def _last(self, run: PageRun, num_tokens: int) -> tuple[int, int | None]:
        """Full pages of the first num_tokens, and the page that they fill in part."""
        full, part = divmod(num_tokens, self.page_tokens)
        return full, run.pages[full] if part else None

    def _kept(self, run: PageRun, num_tokens: int) -> tuple[int, bool]:
        """Pages that a longer run shares, and whether the last one of them is to be written on."""
        full, last = self._last(run, num_tokens)
        in_place = last is not None and self._written[last] == num_tokens % self.page_tokens
        return full + in_place, in_place

    def _missing(self, run: PageRun, num_tokens: int, num_new: int, leaving: int) -> int:
        kept, _ = self._kept(run, num_tokens)
        needed = -(-(num_tokens + num_new) // self.page_tokens) - kept + leaving
        while needed > len(self._free) and self._on_more is not None:
            more = self._on_more()
            self._free.extend(range(self._num_pages + more - 1, self._num_pages - 1, -1))
            self._holders.extend([0] * more)
            self._written.extend([0] * more)
            self._num_pages += more
        return needed - len(self._free)

    def _grow(self, run: PageRun, num_tokens: int, num_new: int) -> Growth:
        stop, size = num_tokens + num_new, self.page_tokens
        kept, in_place = self._kept(run, num_tokens)
        full, last = self._last(run, num_tokens)
        fresh = [self._free.pop() for _ in range(-(-stop // size) - kept)]
        pages = (*run.pages[:kept], *fresh)
        for page in pages:
            self._holders[page] += 1
        for index in range(kept - in_place, len(pages)):
            self._written[pages[index]] = min(size, stop - index * size)
        copy = (last, pages[full]) if last is not None and not in_place else None
        return Growth(PageRun(self, pages), copy)

    def _settle(self) -> None:
        """Count what runs have left behind. Under the lock."""
        while self.left:
            for page in self.left.popleft():
                self._holders[page] -= 1
                if not self._holders[page]:
                    self._free.append(page)


@contextmanager
def pinned(run: PageRun) -> Iterator[None]:
    """While in flight: whoever makes room passes over this run."""
    run.pins += 1
    try:
        yield
    finally:
        run.pins -= 1
