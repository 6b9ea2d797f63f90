"""What a model is given from a directory while it serves, deltas of item rows or graph vectors: what is there is
applied in the order of the numbers, at the start and whenever one comes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from mfalcon.beside import beside
from mfalcon.errors import CheckpointError, InvalidInput, MFalconError, UnknownModel
from mfalcon.graph import vector_file
from mfalcon.items import delta_file
from mfalcon.types import ModelInfo

logger = logging.getLogger(__name__)

Mark = tuple[int, int, int]
"""What changes with a file: its inode, size and time."""
Marks = tuple[Mark | None, Mark | None]
"""Of a manifest and of its columns."""


class Manifest(Protocol):
    """number: they follow each other by it. checkpoint: that it is of. replaces: it needs none of those before it."""

    @property
    def number(self) -> int: ...
    @property
    def checkpoint(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def replaces(self) -> bool: ...


M = TypeVar("M", bound=Manifest)
T = TypeVar("T")


class Watched(Protocol):
    """A directory, whatever it holds."""

    async def look(self) -> None: ...
    async def watch(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind(Generic[M, T]):
    """What a directory holds. what: for a person. suffix: of manifests. version: of what is served now, which begins
    with its number. counts_passed: a file that comes and is of another checkpoint, or no newer, counts as refused.
    """

    what: str
    suffix: str
    read_manifest: Callable[[Path], M]
    read: Callable[[Path, M], T]
    version: Callable[[ModelInfo], str]
    counts_passed: bool = False


ITEMS = Kind(
    "deltas of items",
    delta_file.SUFFIX,
    delta_file.read_manifest,
    delta_file.read_delta,
    lambda info: info.items_version,
)
GRAPH = Kind(
    "graph vectors",
    vector_file.SUFFIX,
    vector_file.read_manifest,
    vector_file.read_vectors,
    lambda info: info.graph_version,
    counts_passed=True,
)


class Folder(Generic[M, T]):
    """Of one model. Lives on the event loop.

    info: of the model that is served now. update: serves what was read, and says whether that is refused. refused: is
    told of each file that is.
    """

    def __init__(
        self,
        kind: Kind[M, T],
        directory: Path,
        info: Callable[[], ModelInfo],
        update: Callable[[T], Awaitable[object]],
        refused: Callable[[str, MFalconError], None] = lambda model, error: None,
    ) -> None:
        self._kind = kind
        self._directory = directory
        self._info = info
        self._update = update
        self._refused = refused
        self._read: dict[str, tuple[Mark, M | None]] = {}
        """By name of the file: what it was when it was read; None for one that was refused."""
        self._bad: dict[str, Marks] = {}
        self._missing = 0
        """Number of a delta that is waited for, and was said to be."""
        self._has_looked = False
        self._looking = asyncio.Lock()

    async def watch(self, seconds: float) -> None:
        """Look again and again; for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.look()
            except Exception:  # (the task's edge: the next delta is looked at all the same)
                logger.exception("%s: %s could not be read", self._directory, self._kind.what)

    async def look(self) -> None:
        """Apply what has come, in its order. A bad delta ends that, until it is exchanged or one that replaces all
        comes: the ones behind it are of a table that there is not. Of those that replace all the newest good one is
        applied.
        """
        async with self._looking:
            while (found := await beside(self._next, in_background=True)) is not None:
                if not await self._apply(*found):
                    return

    async def _apply(self, path: Path, marks: Marks, manifest: M) -> bool:
        """Whether there is more to look for now."""
        name = self._info().name
        try:
            content = await beside(lambda: self._kind.read(path, manifest), in_background=True)
        except InvalidInput as error:
            self._refused(name, error)
            self._say_bad(path, marks, error)
            return True
        try:
            await self._update(content)
        except (CheckpointError, InvalidInput) as error:
            self._say_bad(path, marks, error)
            return True
        except MFalconError as error:  # there is no room now, say
            logger.warning("%s is not applied yet: %s", path, error)
            return False
        self._bad.pop(path.name, None)
        logger.info("model %s: %s %s of %s", name, self._kind.what, self._kind.version(self._info()), path.name)
        return True

    def _say_bad(self, path: Path, marks: Marks, error: MFalconError) -> None:
        self._bad[path.name] = marks
        logger.error("%s is refused, what was served serves on: %s", path, error)

    def _next(self) -> tuple[Path, Marks, M] | None:
        """What comes next, unless it was refused as it is. In a thread."""
        info, known = self._info(), dict[str, tuple[Mark, M | None]]()
        last = int(self._kind.version(info).partition("-")[0] or 0)
        waiting: list[tuple[int, Path, Marks, M]] = []
        try:
            paths = sorted(path for path in self._directory.iterdir() if path.name.endswith(self._kind.suffix))
        except OSError as error:
            logger.warning("%s: cannot be read (%s)", self._directory, error.strerror)
            return None
        for path in paths:
            mark = _mark_of(path)
            if mark is None:
                continue
            before = self._read.get(path.name)
            is_new = before is None or before[0] != mark
            known[path.name] = (mark, self._manifest(path)) if before is None or is_new else before
            manifest = known[path.name][1]
            if manifest is None:
                continue
            if manifest.checkpoint.startswith(info.version) and manifest.number > last:
                waiting.append((manifest.number, path, (mark, _mark_of(path.parent / manifest.file)), manifest))
            elif is_new and self._has_looked:
                self._pass_over(path, manifest, info, last)
        self._read, self._has_looked = known, True
        # One that replaces all makes those before it idle, whether they are good or not; a bad one does nothing.
        good = [one for one in waiting if self._bad.get(one[1].name) != one[2]]
        whole = max((number for number, *_, manifest in good if manifest.replaces), default=0)
        waiting = sorted((one for one in waiting if one[0] >= whole), key=lambda one: one[0])
        if not waiting:
            return None
        number, path, marks, manifest = waiting[0]
        if number != last + 1 and not manifest.replaces:
            if self._missing != last + 1:
                self._missing = last + 1
                logger.error("%s: delta %d is not there, %d waits for it", self._directory, last + 1, number)
            return None
        return None if self._bad.get(path.name) == marks else (path, marks, manifest)

    def _pass_over(self, path: Path, manifest: M, info: ModelInfo, last: int) -> None:
        """It may be for a replica that serves another checkpoint already."""
        if not self._kind.counts_passed:
            return
        if manifest.checkpoint.startswith(info.version):
            error = CheckpointError(f"number: got {manifest.number}, must be more than {last}, which is served")
        else:
            error = CheckpointError(f"checkpoint: got {manifest.checkpoint[:80]!r}, {info.version} is served")
        self._refused(info.name, error)
        logger.warning("%s is passed over: %s", path, error)

    def _manifest(self, path: Path) -> M | None:
        try:
            return self._kind.read_manifest(path)
        except InvalidInput as error:
            self._refused(self._info().name, error)
            logger.error("%s is refused: %s", path, error)
            return None


def folder_of(
    kind: Kind[M, T],
    directory: Path,
    model: str,
    models: Callable[[], tuple[ModelInfo, ...]],
    update: Callable[[str, T], Awaitable[object]],
    refused: Callable[[str, MFalconError], None],
) -> Folder[M, T]:
    """The directory of the model of a name, "" for the default one."""

    def info() -> ModelInfo:
        found = next((one for one in models() if not model or one.name == model), None)
        if found is None:
            raise UnknownModel(f"model: got {model!r}, which is not served")
        return found

    return Folder(kind, directory, info, lambda content: update(info().name, content), refused)


def _mark_of(path: Path) -> Mark | None:
    try:
        stat = path.stat()
    except OSError:  # it is gone
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
