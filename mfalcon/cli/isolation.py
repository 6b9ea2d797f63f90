"""mfalcon runs in an environment of its own: its top-level packages bear names that others use too.

`proto` is also proto-plus, `kernels` is a package of Hugging Face, and a `server` is found in many a checkout. A
package in site-packages comes before an editable install, so a stranger would be imported in place of ours, silently.
"""

from importlib.util import find_spec
from pathlib import Path

import mfalcon
from mfalcon.errors import ConfigError

PACKAGES = ("kernels", "loadtest", "proto", "server")
LEFT_OUT = ("loadtest", "mfalcon.train")
"""What the container images do not hold."""


def check_isolation() -> None:
    """Check that each of `PACKAGES` would be imported from the directory that holds `mfalcon`; imports none of them.

    Raises ConfigError naming the package that comes first instead, and the remedy.
    """
    root = Path(mfalcon.__file__).resolve().parent.parent
    for name in PACKAGES:
        found = _location(name)
        if found is None and name in LEFT_OUT:
            continue
        if found is None:
            raise ConfigError(f"package {name} is missing: {root / name} does not exist or is not on the import path")
        if found != root / name:
            raise ConfigError(
                f"package {name} is shadowed: Python would import it from {found}, mfalcon needs {root / name}. "
                "Install mfalcon alone into a new virtual environment (python3 -m venv .venv && "
                ".venv/bin/pip install -e .), and keep other packages of that name out of PYTHONPATH"
            )


def _location(name: str) -> Path | None:
    """Directory of a package or file of a module, None if there is none."""
    spec = find_spec(name)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin or name).resolve()
