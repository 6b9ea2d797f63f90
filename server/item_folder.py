"""Deltas of item rows from a directory: what is there is applied in the order of the numbers, at the start and whenever
one comes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from mfalcon.beside import beside
from mfalcon.errors import CheckpointError, InvalidInput, MFalconError, UnknownModel
from mfalcon.items.delta import Delta
from mfalcon.items.delta_file import SUFFIX, DeltaManifest, read_delta, read_manifest
from mfalcon.types import ItemsUpdated, ModelInfo

logger = logging.getLogger(__name__)

Mark = tuple[int, int, int]
"""What changes with a file: its inode, size and time."""
Marks = tuple[Mark | None, Mark | None]
"""Of a manifest and of its columns."""


class ItemFolder:
    """Of one model. Lives on the event loop.

    info: of the model that is served now. update: serves a delta, and says whether that is refused. refused: is told of
    each file that is.
    """

    def __init__(
        self,
        directory: Path,
        info: Callable[[], ModelInfo],
        update: Callable[[Delta], Awaitable[ItemsUpdated]],
        refused: Callable[[str, MFalconError], None] = lambda model, error: None,
    ) -> None:
        self._directory = directory
        self._info = info
        self._update = update
        self._refused = refused
        self._read: dict[str, tuple[Mark, DeltaManifest | None]] = {}
        """By name of the file: what it was when it was read; None for one that was refused."""
        self._bad: dict[str, Marks] = {}
        self._missing = 0
        """Number of a delta that is waited for, and was said to be."""
        self._looking = asyncio.Lock()

    async def watch(self, seconds: float) -> None:
        """Look again and again; for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.look()
            except Exception:  # (the task's edge: the next delta is looked at all the same)
                logger.exception("%s: deltas of items could not be read", self._directory)

    async def look(self) -> None:
        """Apply what has come, in its order. A bad delta ends that, until it is exchanged or one that replaces all
        comes: the ones behind it are of a table that there is not.
        """
        async with self._looking:
            while (found := await beside(self._next)) is not None:
                if not await self._apply(*found):
                    return

    async def _apply(self, path: Path, marks: Marks, manifest: DeltaManifest) -> bool:
        name = self._info().name
        try:
            delta = await beside(lambda: read_delta(path, manifest))
        except InvalidInput as error:
            self._refused(name, error)
            self._say_bad(path, marks, error)
            return False
        try:
            done = await self._update(delta)
        except (CheckpointError, InvalidInput) as error:
            self._say_bad(path, marks, error)
            return False
        except MFalconError as error:  # there is no room now, say
            logger.warning("%s is not applied yet: %s", path, error)
            return False
        self._bad.pop(path.name, None)
        logger.info("model %s: items %s with %d rows of %s", name, done.items_version, done.num_rows, path.name)
        return True

    def _say_bad(self, path: Path, marks: Marks, error: MFalconError) -> None:
        self._bad[path.name] = marks
        logger.error("%s is refused, the last table serves on: %s", path, error)

    def _next(self) -> tuple[Path, Marks, DeltaManifest] | None:
        """The delta that comes next, unless it was refused as it is. In a thread."""
        info, known = self._info(), dict[str, tuple[Mark, DeltaManifest | None]]()
        last = int(info.items_version.partition("-")[0] or 0)
        waiting: list[tuple[int, Path, Mark, DeltaManifest]] = []
        try:
            paths = sorted(path for path in self._directory.iterdir() if path.name.endswith(SUFFIX))
        except OSError as error:
            logger.warning("%s: cannot be read (%s)", self._directory, error.strerror)
            return None
        for path in paths:
            mark = _mark_of(path)
            if mark is None:
                continue
            before = self._read.get(path.name)
            known[path.name] = before if before is not None and before[0] == mark else (mark, self._manifest(path))
            manifest = known[path.name][1]
            if manifest is not None and manifest.checkpoint.startswith(info.version) and manifest.number > last:
                waiting.append((manifest.number, path, mark, manifest))
        self._read = known
        # One that replaces all makes those before it idle, whether they are good or not.
        whole = max((number for number, *_, manifest in waiting if manifest.replaces), default=0)
        waiting = sorted((one for one in waiting if one[0] >= whole), key=lambda one: one[0])
        if not waiting:
            return None
        number, path, mark, manifest = waiting[0]
        if number != last + 1 and not manifest.replaces:
            if self._missing != last + 1:
                self._missing = last + 1
                logger.error("%s: delta %d is not there, %d waits for it", self._directory, last + 1, number)
            return None
        marks = mark, _mark_of(path.parent / manifest.file)
        return None if self._bad.get(path.name) == marks else (path, marks, manifest)

    def _manifest(self, path: Path) -> DeltaManifest | None:
        try:
            return read_manifest(path)
        except InvalidInput as error:
            self._refused(self._info().name, error)
            logger.error("%s is refused: %s", path, error)
            return None


def folder_of(
    directory: Path,
    model: str,
    models: Callable[[], tuple[ModelInfo, ...]],
    update: Callable[[str, Delta], Awaitable[ItemsUpdated]],
    refused: Callable[[str, MFalconError], None],
) -> ItemFolder:
    """The directory of the model of a name, "" for the default one."""

    def info() -> ModelInfo:
        found = next((one for one in models() if not model or one.name == model), None)
        if found is None:
            raise UnknownModel(f"model: got {model!r}, which is not served")
        return found

    return ItemFolder(directory, info, lambda delta: update(info().name, delta), refused)


def _mark_of(path: Path) -> Mark | None:
    try:
        stat = path.stat()
    except OSError:  # it is gone
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
