"""Build hook of hatchling: an editable install is the only build of mfalcon that is allowed, and it compiles the fused
kernel for this processor where there is a C++ compiler.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

REFUSAL = """
mfalcon is an application and is not built as a wheel or an sdist: its top-level packages (kernels, proto, server,
loadtest) are also import names of other people's packages. Either install it editable into a virtual environment of
its own:
    python3 -m venv .venv && .venv/bin/pip install -e .
or build the container image:
    docker build -t mfalcon .
"""


class EditableOnly(BuildHookInterface[Any]):
    """Refuses every build but the editable one."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before anything is built; `version` is "editable" or "standard"."""
        if version != "editable":
            self.app.abort(REFUSAL)
        if (Path(self.root) / "kernels" / "cpu" / "build_library.py").exists():
            # An image installs before it has the code. Without a compiler, or with one that fails, the server runs all
            # the same, slower, and says so.
            subprocess.run([sys.executable, "-m", "kernels.cpu.build_library", "--fit"], cwd=self.root, check=False)
