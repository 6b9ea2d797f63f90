"""Reloads of models from their directories: by the Admin call, by SIGHUP, or because a directory has changed."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from mfalcon.beside import beside
from mfalcon.errors import CheckpointError, ConfigError, MFalconError, UnknownModel
from mfalcon.models.manifest import MANIFEST, MOST_MANIFEST_BYTES
from mfalcon.types import ModelInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")
Mark = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did."""

    model: str
    old_version: str
    version: str
    took_ms: int


class Reloads(Generic[T]):
    """Knows where each model was loaded from. Lives on the event loop.

    directories: by name of the model, the default one first. marks: what they were before they were loaded. load: reads
    a checkpoint, in a thread. exchange: has a model served from what `load` gives, and raises what keeps the old one
    serving. models: what is served now.
    """

    def __init__(
        self,
        directories: Mapping[str, Path],
        marks: Mapping[Path, Mark | None],
        load: Callable[[Path], T],
        exchange: Callable[[str, Callable[[], T]], Awaitable[ModelInfo]],
        models: Callable[[], tuple[ModelInfo, ...]],
    ) -> None:
        self._directories = dict(directories)
        self._marks = {name: marks[directory] for name, directory in directories.items()}
        """What was served, or found to be bad, last: it is not tried again until it changes."""
        self._load = load
        self._exchange = exchange
        self._models = models
        self._reloads_all = self._again = False

    async def reload(self, model: str = "", checkpoint: str = "") -> Reloaded:
        """Serve a model from a directory, or from its own again. Raises UnknownModel, CheckpointError, ConfigError,
        EngineFailure, or Overloaded while it is being reloaded; then the old one serves on.
        """
        name = model or next(iter(self._directories))
        if name not in self._directories:
            raise UnknownModel(f"model: got {model[:80]!r}, must be {', '.join(map(repr, self._directories))} or empty")
        began, old = time.monotonic(), next(info for info in self._models() if info.name == name)
        directory = Path(checkpoint) if checkpoint else self._directories[name]
        mark = await beside(partial(mark_of, directory))
        try:
            info = await self._exchange(name, lambda: self._load(directory))
        except (CheckpointError, ConfigError):
            if directory == self._directories[name]:
                self._marks[name] = mark
            raise
        self._directories[name], self._marks[name] = directory, mark
        return Reloaded(name, old.version, info.version, round(1000 * (time.monotonic() - began)))

    async def reload_all(self) -> None:
        """Every model from its own directory; what fails is in the log. Asked for while it does so, however often, it
        does so once more: a directory may have changed after it was read.
        """
        self._again = True
        if self._reloads_all:
            return
        self._reloads_all = True
        try:
            while self._again:
                self._again = False
                for name in tuple(self._directories):
                    await self._reload_or_log(name)
        finally:
            self._reloads_all = False

    async def watch(self, seconds: float) -> None:
        """Reload a model whose directory's symlink or manifest has changed; for ever. One that is bad is tried once."""
        while True:
            await asyncio.sleep(seconds)
            for name, directory in tuple(self._directories.items()):
                mark = await beside(partial(mark_of, directory))
                if mark is not None and mark != self._marks[name]:
                    await self._reload_or_log(name)

    async def _reload_or_log(self, name: str) -> None:
        try:
            done = await self.reload(name)
        except MFalconError as error:
            logger.error("model %s was not reloaded from %s: %s", name, self._directories[name], error)
        except Exception:  # (the task's edge: the next change is looked at all the same)
            logger.exception("model %s was not reloaded from %s", name, self._directories[name])
        else:
            logger.info("model %s: version %s instead of %s", name, done.version, done.old_version)


def mark_of(directory: Path) -> Mark | None:
    """What changes with a checkpoint: where the directory really is, and its manifest. None while there is none."""
    try:
        with (directory / MANIFEST).open("rb") as manifest:
            return str(directory.resolve()), manifest.read(MOST_MANIFEST_BYTES + 1)  # more of it is refused anyhow
    except OSError:
        return None
