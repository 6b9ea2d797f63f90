"""What runs, and how it is set up, so that replicas that differ are seen to."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry

from mfalcon import __version__
from mfalcon.metrics.catalog import models

_HASH_CHARS = 12


class BuildInfo:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        models.BUILD_INFO.made(registry).labels(__version__, version("torch")).set(1)
        self._config = models.CONFIG_INFO.made(registry)

    def configured(self, settings: Mapping[str, object]) -> None:
        """The settings as JSON can hold them, without secrets: whoever knows the others could try out passwords."""
        text = json.dumps(settings, sort_keys=True, default=str)
        self._config.labels(hashlib.sha256(text.encode()).hexdigest()[:_HASH_CHARS]).set(1)
