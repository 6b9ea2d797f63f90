"""Architectures by name: ours, and those of other packages, which name a class in the entry points `mfalcon.rankers`.

A new model of ours is a file beside these and a line here. A class of another package is imported when its name is
asked for, so that one that cannot be imported harms no other model.
"""

import logging
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from typing import Final

from mfalcon.errors import ConfigError
from mfalcon.models.base import EventRanker, PrefixRanker, Ranker
from mfalcon.models.config import RankerConfig
from mfalcon.models.dfgr import DFGR
from mfalcon.models.din import Din
from mfalcon.models.dlrm_stable import DlrmV3Stable
from mfalcon.models.dlrm_v3 import DlrmV3
from mfalcon.models.hstu import HSTU
from mfalcon.models.lum import LUM
from mfalcon.models.recsys_hstu import RecsysHstu

GROUP: Final = "mfalcon.rankers"
_OURS: Final[dict[str, type[Ranker]]] = {
    "dfgr": DFGR,
    "din": Din,
    "dlrm_v3": DlrmV3,
    "dlrm_v3_stable": DlrmV3Stable,
    "hstu": HSTU,
    "lum": LUM,
    "recsys_hstu": RecsysHstu,
}
_LOG = logging.getLogger(__name__)


def architectures() -> tuple[str, ...]:
    """Registered names, ours and others'."""
    return tuple(sorted({*_OURS, *_elsewhere()}))


def trained_here() -> tuple[str, ...]:
    """Those that `mfalcon train` may have a recipe for: it has one for every `TaskRanker`."""
    return tuple(name for name in architectures() if name not in _OURS or _OURS[name].is_trained_here)


def rankers() -> tuple[str, ...]:
    """Ours that score items."""
    return tuple(name for name in sorted(_OURS) if _OURS[name].ranks_items)


def prefix_rankers() -> tuple[str, ...]:
    """Ours that score items against a KV state and are trained here."""
    return tuple(name for name in rankers() if _OURS[name].encodes_prefix and _OURS[name].is_trained_here)


def architecture(name: str) -> type[Ranker]:
    """The class of a name. Raises ConfigError for one that is not registered, that two packages have, that cannot be
    imported, or that is no ranker.
    """
    if name in _OURS:
        return _OURS[name]
    points = _elsewhere().get(name)
    if points is None:
        raise ConfigError(f"architecture: got {name!r}, must be one of {', '.join(architectures())}")
    if len(points) > 1:
        raise ConfigError(f"architecture {name!r}: must be of one package, is of {' and of '.join(map(_told, points))}")
    return _imported(name, points[0])


def _elsewhere() -> dict[str, tuple[EntryPoint, ...]]:
    """What other packages register, by name; a name of ours stays ours."""
    found = dict[str, tuple[EntryPoint, ...]]()
    for point in entry_points(group=GROUP):
        if point.name in _OURS:
            _LOG.warning("architecture %r is mfalcon's own: %s does not take its place", point.name, _told(point))
        else:
            found[point.name] = (*found.get(point.name, ()), point)
    return found


def _imported(name: str, point: EntryPoint) -> type[Ranker]:
    try:
        kind = point.load()
    except (Exception, SystemExit) as error:
        first = (str(error).splitlines() or [""])[0][:300]
        raise ConfigError(
            f"architecture {name!r}: {_told(point)} cannot be imported ({type(error).__name__}: {first})"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, PrefixRanker | EventRanker)) or isabstract(kind):
        raise ConfigError(f"architecture {name!r}: {_told(point)} must be a whole PrefixRanker or EventRanker")
    if not isinstance(getattr(kind, "prefix_stable", None), bool):
        raise ConfigError(f"architecture {name!r}: {_told(point)} must say prefix_stable, True or False")
    return kind


def _told(point: EntryPoint) -> str:
    return f"{point.value} of package {point.dist.name if point.dist is not None else 'unknown'}"


def build(config: RankerConfig) -> Ranker:
    """An untrained model of a configuration. Raises ConfigError for one of another kind of model."""
    check_kind(config)
    return architecture(config.architecture)(config)


def check_kind(config: RankerConfig) -> None:
    """Raise ConfigError if a configuration is not of the kind of its architecture, or that is not registered."""
    kind = architecture(config.architecture)
    if kind.has_layers != (config.layer is not None):
        has, must = ("din", "layer") if kind.has_layers else ("layer", "din")
        raise ConfigError(f"architecture {config.architecture!r}: got {has}, must have {must}")
    for part in {one.config_part for one in _OURS.values() if one.config_part is not None}:
        if (part == kind.config_part) != (getattr(config, part) is not None):
            must = "" if part == kind.config_part else "no "
            raise ConfigError(f"architecture {config.architecture!r}: must have {must}{part}")
    if kind.ranks_items != (config.lum is None):
        must = "no lum" if kind.ranks_items else "lum, the conditions that it is asked"
        raise ConfigError(f"architecture {config.architecture!r}: must have {must}")
