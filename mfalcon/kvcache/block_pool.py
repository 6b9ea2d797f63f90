"""Who holds which page of a pool: free list, reference counts, pins. No memory and no torch: pages are numbers.

A run is the pages of one KV state, in token order. Runs of one lineage share pages; a page goes back to the free list
when the last run that holds it is gone.

A pool may have two sizes of pages: a run of few tokens takes small ones, which lie several in one page. All pages of a
run are of one size, so a run that outgrows the small ones is copied once (`Growth.moved`).
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mfalcon.errors import Overloaded

SMALL_PAGE_TOKENS = 32
"""Tokens of a small page: two vectors of the widest fused kernel, two of the least products of a GPU. A state of 20
events takes 1.6 times its content, on pages of 128 it took 6.4 times.
"""
_LEAST_CUT = 4
"""A page is cut up into so many small ones or more, or not at all."""


def small_page_tokens(page_tokens: int) -> int | None:
    """Tokens of a small page beside pages of so many; None if they are not cut up."""
    parts, rest = divmod(page_tokens, SMALL_PAGE_TOKENS)
    return SMALL_PAGE_TOKENS if parts >= _LEAST_CUT and not rest else None


class PageRun:
    """The pages of one KV state. They are held until nobody has the run any more; no page is ever freed by hand.

    pages: counted in pages of this size, of `page_tokens` tokens: small page i is a part of page i // (small ones in a
    page).
    """

    __slots__ = ("__weakref__", "_accounts", "page_tokens", "pages", "pins")

    def __init__(self, accounts: "BlockPool", page_tokens: int, pages: tuple[int, ...]) -> None:
        self._accounts = accounts
        self.page_tokens = page_tokens
        self.pages = pages
        self.pins = 0

    @property
    def cut_pages(self) -> frozenset[int]:
        """The pages that its small pages are parts of; none for a run of whole pages."""
        parts = self._accounts.page_tokens // self.page_tokens
        return frozenset(page // parts for page in self.pages) if parts > 1 else frozenset()

    def __del__(self) -> None:
        # Any thread, at any moment: nothing here may wait for a lock.
        self._accounts.left.append((self.page_tokens, self.pages))


@dataclass(frozen=True, slots=True)
class Growth:
    """A longer run. copy: (from, to) where the last page had to be copied first, because it is not this run's alone to
    write on. moved: whether its pages are of another size and none is shared, so that all tokens have to be copied.
    """

    run: PageRun
    copy: tuple[int, int] | None
    moved: bool = False


@dataclass(slots=True)
class _Pages:
    """Of pages of one size: how many runs hold each, and how many of its tokens are written."""

    holders: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    def add(self, num: int) -> None:
        self.holders.extend([0] * num)
        self.written.extend([0] * num)


class _Parts:
    """The free small pages: those of pages that others hold in part. What is cut up the most goes first, so that few
    pages are.
    """

    def __init__(self, in_page: int) -> None:
        self.in_page = in_page
        self._free: dict[int, list[int]] = {}
        self._by_free: list[dict[int, None]] = [{} for _ in range(in_page)]
        """Cut pages by how many of their parts are free."""

    @property
    def num_free(self) -> int:
        return sum(num * len(pages) for num, pages in enumerate(self._by_free))

    @property
    def cut(self) -> Iterable[int]:
        """Every page that is cut up."""
        return self._free.keys()

    @property
    def free(self) -> list[int]:
        return [part for parts in self._free.values() for part in parts]

    def cut_up(self, page: int) -> None:
        """Add a page; one of its parts must be taken next."""
        self._free[page] = [page * self.in_page + part for part in reversed(range(self.in_page))]

    def take(self, page: int | None = None) -> int | None:
        """A part of this page, or of the one with the fewest that are free."""
        if page is None:
            page = next((next(iter(pages)) for pages in self._by_free[1:] if pages), None)
            if page is None:
                return None
            del self._by_free[len(self._free[page])][page]
        part = self._free[page].pop()
        self._by_free[len(self._free[page])][page] = None
        return part

    def give(self, part: int) -> int | None:
        """Take a part back; the page if it is whole again."""
        page = part // self.in_page
        parts = self._free[page]
        del self._by_free[len(parts)][page]
        parts.append(part)
        if len(parts) == self.in_page:
            del self._free[page]
            return page
        self._by_free[len(parts)][page] = None
        return None


class BlockPool:
    """The accounts of a pool of `num_pages` pages, of `page_tokens` tokens each. Any thread may call any method.

    on_more: called under the lock to add pages to a pool without a limit; None for one of fixed size. small_tokens: of
    a small page, a part of page_tokens; None for a pool without small pages.
    """

    def __init__(
        self,
        num_pages: int,
        page_tokens: int,
        on_more: Callable[[], int] | None = None,
        small_tokens: int | None = None,
    ) -> None:
        self.page_tokens = page_tokens
        self.small_tokens = small_tokens
        self.left: deque[tuple[int, tuple[int, ...]]] = deque()
        """Size and pages of runs that are gone, until `_settle` has counted them."""
        self._num_pages = 0
        self._on_more = on_more
        self._free: list[int] = []
        self._parts = _Parts(page_tokens // (small_tokens or page_tokens))
        self._sizes = {size: _Pages() for size in (page_tokens, small_tokens) if size is not None}
        self._lock = threading.Lock()
        self._room_makers: tuple[Callable[[bool], bool], ...] = ()
        assert small_tokens is None or (small_tokens < page_tokens and page_tokens % small_tokens == 0)
        self._add(num_pages)

    @property
    def num_pages(self) -> int:
        """All pages."""
        return self._num_pages

    @property
    def num_free(self) -> int:
        """Pages of which nobody holds anything."""
        with self._lock:
            self._settle()
            return len(self._free)

    @property
    def num_free_tokens(self) -> int:
        """Tokens that there is room for in free pages and in free small pages."""
        with self._lock:
            self._settle()
            return len(self._free) * self.page_tokens + self._parts.num_free * (self.small_tokens or 0)

    def size_for(self, num_tokens: int) -> int:
        """Tokens of a page of a run of so many tokens: small ones as long as they take less than a page."""
        small = self.small_tokens
        return small if small is not None and num_tokens <= self.page_tokens - small else self.page_tokens

    def make_room_with(self, make_room: Callable[[bool], bool]) -> Callable[[], None]:
        """Whom to ask to let go of a run when too few pages are free; it is told whether a whole page is wanted, and
        answers False when it has none to drop.

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
        return PageRun(self, self.page_tokens, ())

    def first(self, run: PageRun, num_tokens: int) -> PageRun:
        """A run of the pages of the first num_tokens tokens of a run, shared with it."""
        with self._lock:
            pages = run.pages[: -(-num_tokens // run.page_tokens)]
            for page in pages:
                self._sizes[run.page_tokens].holders[page] += 1
            return PageRun(self, run.page_tokens if pages else self.page_tokens, pages)

    def grow(
        self, run: PageRun, num_tokens: int, num_new: int, leaving: int = 0, page_tokens: int | None = None
    ) -> Growth:
        """A run for num_new tokens behind the first num_tokens of a run, which stays as it is.

        The newest run of a lineage lends its last page: the rest of that page is written in place, once. leaving: pages
        that must stay free for others. page_tokens: size of its pages, by default `size_for` all of its tokens. Raises
        Overloaded; what others were asked to drop is dropped then all the same, unless even all of it were too little.
        """
        size = page_tokens or self.size_for(num_tokens + num_new)
        assert size in self._sizes, f"no pages of {size} tokens"
        is_whole = size == self.page_tokens
        made_room = True
        while True:
            with self._lock:
                self._settle()
                missing = self._missing(run, num_tokens, num_new, size, leaving)
                if missing <= 0:
                    return self._grow(run, num_tokens, num_new, size)
                held = self._num_pages - len(self._free)
            if not made_room or missing > held:
                raise Overloaded(
                    f"the memory for KV states ({self._num_pages} pages) is in use, {missing} more pages are needed; "
                    "try again later"
                )
            made_room = any(make_room(is_whole or leaving > 0) for make_room in self._room_makers)

    def check_integrity(self, runs: Iterable[PageRun]) -> None:
        """AssertionError unless free and held pages are all pages, and `runs` are exactly what holds them."""
        with self._lock:
            self._settle()
            in_page, cut = self._parts.in_page, set(self._parts.cut)
            held: dict[int, Counter[int]] = {size: Counter() for size in self._sizes}
            for run in runs:
                held[run.page_tokens].update(run.pages)
            whole, small = held[self.page_tokens], held.get(self.small_tokens or 0, Counter[int]())
            free, free_parts = set(self._free), set(self._parts.free)
            assert len(self._free) == len(free), "a page is free twice"
            assert not whole.keys() & free, "a held page is free"
            assert not cut & (free | whole.keys()), "a page that is cut up is free or held"
            assert len(free) + len(whole) + len(cut) == self._num_pages, "a page is neither free nor held, or both"
            assert len(self._parts.free) == len(free_parts) == self._parts.num_free, "a small page is free twice"
            assert not small.keys() & free_parts, "a held small page is free"
            parts = {page * in_page + part for page in cut for part in range(in_page)}
            assert small.keys() | free_parts == parts, "a small page is neither free nor held, or of no page"
            assert all(small.keys() & set(range(page * in_page, (page + 1) * in_page)) for page in cut), (
                "a page is cut up for nobody"
            )
            for size, pages in self._sizes.items():
                counts = [held[size][page] for page in range(len(pages.holders))]
                assert pages.holders == counts, "a count is wrong"

    def _last(self, run: PageRun, num_tokens: int) -> tuple[int, int | None]:
        """Full pages of the first num_tokens, and the page that they fill in part."""
        full, part = divmod(num_tokens, run.page_tokens)
        return full, run.pages[full] if part else None

    def _kept(self, run: PageRun, num_tokens: int, size: int) -> tuple[int, bool]:
        """Pages that a longer run shares, and whether the last one of them is to be written on."""
        if size != run.page_tokens:
            return 0, False
        full, last = self._last(run, num_tokens)
        in_place = last is not None and self._sizes[size].written[last] == num_tokens % size
        return full + in_place, in_place

    def _missing(self, run: PageRun, num_tokens: int, num_new: int, size: int, leaving: int) -> int:
        kept, _ = self._kept(run, num_tokens, size)
        needed = -(-(num_tokens + num_new) // size) - kept
        if size != self.page_tokens:
            needed = max(0, -(-(needed - self._parts.num_free) // self._parts.in_page))
        while needed + leaving > len(self._free) and self._on_more is not None:
            self._add(self._on_more())
        return needed + leaving - len(self._free)

    def _add(self, more: int) -> None:
        self._free.extend(range(self._num_pages + more - 1, self._num_pages - 1, -1))
        for size, pages in self._sizes.items():
            pages.add(more * (self.page_tokens // size))
        self._num_pages += more

    def _grow(self, run: PageRun, num_tokens: int, num_new: int, size: int) -> Growth:
        stop, of_size = num_tokens + num_new, self._sizes[size]
        kept, in_place = self._kept(run, num_tokens, size)
        fresh = [self._take(size) for _ in range(-(-stop // size) - kept)]
        pages = (*run.pages[:kept], *fresh)
        for page in pages:
            of_size.holders[page] += 1
        for index in range(kept - in_place, len(pages)):
            of_size.written[pages[index]] = min(size, stop - index * size)
        longer = PageRun(self, size, pages)
        if size != run.page_tokens:
            return Growth(longer, None, moved=num_tokens > 0)
        full, last = self._last(run, num_tokens)
        return Growth(longer, (last, pages[full]) if last is not None and not in_place else None)

    def _take(self, size: int) -> int:
        """A free page of this size; there is one."""
        if size == self.page_tokens:
            return self._free.pop()
        part = self._parts.take()
        if part is None:
            page = self._free.pop()
            self._parts.cut_up(page)
            part = self._parts.take(page)
        assert part is not None
        return part

    def _settle(self) -> None:
        """Count what runs have left behind. Under the lock."""
        while self.left:
            size, pages = self.left.popleft()
            holders = self._sizes[size].holders
            for page in pages:
                holders[page] -= 1
                if holders[page]:
                    continue
                whole = page if size == self.page_tokens else self._parts.give(page)
                if whole is not None:
                    self._free.append(whole)


@contextmanager
def pinned(run: PageRun) -> Iterator[None]:
    """While in flight: whoever makes room passes over this run."""
    run.pins += 1
    try:
        yield
    finally:
        run.pins -= 1
