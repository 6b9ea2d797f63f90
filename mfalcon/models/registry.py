"""Architectures by name. A new model is a file beside these and a line here."""

from mfalcon.errors import ConfigError
from mfalcon.models.base import Ranker
from mfalcon.models.config import RankerConfig
from mfalcon.models.dfgr import DFGR
from mfalcon.models.din import Din
from mfalcon.models.dlrm_v3 import DlrmV3
from mfalcon.models.hstu import HSTU
from mfalcon.models.lum import LUM

_ARCHITECTURES: dict[str, type[Ranker]] = {"dfgr": DFGR, "din": Din, "dlrm_v3": DlrmV3, "hstu": HSTU, "lum": LUM}


def architectures() -> tuple[str, ...]:
    """Registered names."""
    return tuple(sorted(_ARCHITECTURES))


def trained_here() -> tuple[str, ...]:
    """Those that `mfalcon train` has a recipe for."""
    return tuple(name for name in architectures() if _ARCHITECTURES[name].is_trained_here)


def rankers() -> tuple[str, ...]:
    """Those that score items."""
    return tuple(name for name in architectures() if _ARCHITECTURES[name].ranks_items)


def prefix_rankers() -> tuple[str, ...]:
    """Those that score items against a KV state."""
    return tuple(name for name in rankers() if _ARCHITECTURES[name].encodes_prefix)


def architecture(name: str) -> type[Ranker]:
    """The class of a name. Raises ConfigError for one that is not registered."""
    if name not in _ARCHITECTURES:
        raise ConfigError(f"architecture: got {name!r}, must be one of {', '.join(architectures())}")
    return _ARCHITECTURES[name]


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
    if (kind is DlrmV3) != (config.dlrm is not None):
        raise ConfigError(f"architecture {config.architecture!r}: must have {'' if kind is DlrmV3 else 'no '}dlrm")
    if kind.ranks_items != (config.lum is None):
        must = "no lum" if kind.ranks_items else "lum, the conditions that it is asked"
        raise ConfigError(f"architecture {config.architecture!r}: must have {must}")
