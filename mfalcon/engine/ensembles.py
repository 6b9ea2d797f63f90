"""The ensembles of an engine, by name: entries beside the models of the catalog."""

import asyncio
from collections.abc import Iterator, Sequence

from mfalcon.engine.catalog import Catalog
from mfalcon.engine.ensemble import Ensemble, EnsembleOptions
from mfalcon.engine.jobs import Jobs
from mfalcon.engine.members import LocalMember
from mfalcon.errors import ConfigError, UnknownModel
from mfalcon.history.history import Reading
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.types import ModelInfo


class Ensembles:
    """Those of one engine."""

    def __init__(
        self, options: Sequence[EnsembleOptions], catalog: Catalog, jobs: Jobs, metrics: ServerMetrics
    ) -> None:
        """Raises ConfigError for a name that is taken, a member that is not served, members that cannot be merged."""
        self._catalog = catalog
        self._ensembles = dict[str, Ensemble]()
        names = {ranker.name for ranker in catalog}
        for each in options:
            if each.name in names:
                raise ConfigError(f"ensembles: got the name {each.name!r} twice, must be one model or ensemble each")
            names.add(each.name)
            read = self._read if any(member.remote is None for member in each.members) else None
            try:
                made = Ensemble(each, metrics, lambda model: LocalMember(model, catalog, jobs), read)
            except UnknownModel as error:
                raise ConfigError(f"ensemble {each.name}: members: {error}") from error
            self._ensembles[each.name] = made

    def get(self, name: str) -> Ensemble | None:
        """The ensemble of a name, None if that is none of them."""
        return self._ensembles.get(name)

    def check(self, new: ModelInfo) -> None:
        """Raise ConfigError unless every ensemble can do with another model of a name."""
        for ensemble in self:
            ensemble.check_reload(new)

    async def start(self) -> None:
        """Reach the members that are elsewhere. Raises ConfigError for one that cannot be merged."""
        await asyncio.gather(*(ensemble.start() for ensemble in self))

    async def close(self) -> None:
        """Hang up on these."""
        await asyncio.gather(*(ensemble.close() for ensemble in self))

    async def _read(self, user_id: str, deadline: float | None) -> Reading:
        """The event log, which all models share, by the default one of now: nothing that a reload exchanged is held."""
        return await self._catalog.default.fetcher.read(user_id, deadline)

    def __iter__(self) -> Iterator[Ensemble]:
        """All, in order."""
        return iter(self._ensembles.values())
