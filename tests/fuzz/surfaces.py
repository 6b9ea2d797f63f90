"""Every surface that is fuzzed, by the name of its module in targets/."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True, slots=True)
class Surface:
    """target: takes any bytes, and lets only documented errors be. seeds: inputs that are good, or nearly so."""

    name: str
    target: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]

    def corpus(self) -> list[bytes]:
        """The seeds, and what fuzzing has found worth keeping: inputs that went where no other did, and regressions."""
        found = sorted((CORPUS / self.name).glob("*"))
        return [*self.seeds(), *(path.read_bytes() for path in found)]


NAMES = tuple(sorted(path.stem for path in (Path(__file__).parent / "targets").glob("[a-z]*.py")))


def surface(name: str) -> Surface:
    """The surface of a name."""
    module = importlib.import_module(f"tests.fuzz.targets.{name}")
    return Surface(name, module.target, module.seeds)
