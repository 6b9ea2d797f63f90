"""Architectures by name. A new model is a file beside these and a line here."""

from mfalcon.errors import ConfigError
from mfalcon.models.base import Ranker
from mfalcon.models.config import RankerConfig
from mfalcon.models.dfgr import DFGR
from mfalcon.models.hstu import HSTU

_ARCHITECTURES: dict[str, type[Ranker]] = {"dfgr": DFGR, "hstu": HSTU}


def architectures() -> tuple[str, ...]:
    """Registered names."""
    return tuple(sorted(_ARCHITECTURES))


def architecture(name: str) -> type[Ranker]:
    """The class of a name. Raises ConfigError for one that is not registered."""
    if name not in _ARCHITECTURES:
        raise ConfigError(f"architecture: got {name!r}, must be one of {', '.join(architectures())}")
    return _ARCHITECTURES[name]


def build(config: RankerConfig) -> Ranker:
    """An untrained model of a configuration."""
    return architecture(config.architecture)(config)
