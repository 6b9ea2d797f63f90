"""The models that are served, by name."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

from mfalcon.engine.ranker import LoadedRanker
from mfalcon.errors import ConfigError, UnknownModel


class Catalog:
    """Rankers by name; the first one answers requests that name none."""

    def __init__(self, rankers: Sequence[LoadedRanker]) -> None:
        """Raises ConfigError for two of one name."""
        self._rankers = {ranker.name: ranker for ranker in rankers}
        if len(self._rankers) < len(rankers):
            names = [ranker.name for ranker in rankers]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"models: got the name {twice!r} twice, must be one model each")

    @property
    def default(self) -> LoadedRanker:
        """The first one."""
        return next(iter(self._rankers.values()))

    def get(self, name: str) -> LoadedRanker:
        """The model of a name, the default one for "". Raises UnknownModel."""
        if not name:
            return self.default
        if name not in self._rankers:
            raise UnknownModel(f"model: got {name!r}, must be {' or '.join(map(repr, self._rankers))}")
        return self._rankers[name]

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[LoadedRanker]:
        """The model of a name, with the lock of what changes in it while it serves; one that is exchanged while this
        waits is passed over for the next one, which what waits may still fit. Raises UnknownModel.
        """
        while True:
            ranker = self.get(name)
            async with ranker.live.lock:
                if self.get(name) is ranker:
                    yield ranker
                    return

    def replace(self, ranker: LoadedRanker) -> None:
        """Serve a ranker in the place of the one of its name."""
        assert ranker.name in self._rankers
        self._rankers = self._rankers | {ranker.name: ranker}

    def __iter__(self) -> Iterator[LoadedRanker]:
        """All, the default one first."""
        return iter(self._rankers.values())
