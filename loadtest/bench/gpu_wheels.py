"""What a machine with a device and without a package index is brought: which wheels, and whether they are there.

`gpu_wheels.txt` lists what all steps but one need, less than 8 MB for Python 3.12 on x86-64 Linux, and
`gpu_wheels_grpc.txt` what a server needs beside that; `make gpu-wheels` fetches them into build/wheels. They are
unpacked into a folder of the run, so nothing is installed and no pip is needed.
"""

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

MEASURING = ("pydantic",)
"""What the measurements of `gpu_all` import; torch, triton and numpy such a machine must have by itself."""
TESTING = (
    *MEASURING,
    *("safetensors", "xxhash", "opentelemetry.trace", "redis", "hiredis", "cachetools", "prometheus_client", "orjson"),
    *("pytest", "pytest_asyncio", "hypothesis"),
)
"""What the tests, laws and engine of `gpu_checks` import beside that."""
SERVING = (
    *("grpc", "grpc_health.v1.health", "grpc_reflection.v1alpha.reflection", "google.protobuf", "fastapi", "uvicorn"),
    *("msgspec", "zmq", "pydantic_settings", "cryptography.hazmat.primitives.ciphers.aead"),
)
"""What a server imports beside `TESTING`."""
_PRESENT = ("torch", "triton", "numpy")
_LOOKED_FOR = f"""
import sys
from importlib import import_module
from importlib.util import find_spec

for name in {_PRESENT}:
    if find_spec(name) is None:
        print(f"no module named {{name}}")
for name in sys.argv[1:]:
    try:
        import_module(name)
    except Exception as error:
        print(f"{{name}}: {{type(error).__name__}}: {{error}}")
"""
"""Those that must be there by themselves are only looked for: to import them takes seconds."""


def unpack(wheels: Path, site: Path) -> int:
    """Every wheel of a folder; how many there were."""
    found = sorted(wheels.glob("*.whl"))
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return len(found)


def missing(names: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """What cannot be imported, and why. A process with these variables tries it, because a package that is there may
    be built for another Python, or want one that is not. Nothing is tried for no names.
    """
    if not names:
        return []
    command = [sys.executable, "-c", _LOOKED_FOR, *names]
    asked = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return asked.stdout.splitlines() + ([asked.stderr[-500:]] if asked.returncode else [])
