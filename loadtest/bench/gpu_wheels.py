"""What a machine with a device and without a package index is brought: which wheels, and whether they are there.

`gpu_wheels.txt` lists them for Python 3.12 on x86-64 Linux, less than 10 MB together; `make gpu-wheels` fetches them
into build/wheels. They are unpacked into a folder of the run, so nothing is installed and no pip is needed.
"""

import zipfile
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

PRESENT = ("torch", "triton", "numpy")
"""What such a machine must have by itself."""
MEASURING = ("pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection")
"""What the measurements of `gpu_all` import beside that."""
TESTING = (
    *MEASURING,
    *("safetensors", "xxhash", "opentelemetry", "redis", "hiredis", "cachetools", "prometheus_client"),
    *("pytest", "pytest_asyncio", "hypothesis"),
)
"""What the tests, laws and engine of `gpu_checks` import beside `PRESENT`."""
SERVING = (
    *("grpc", "grpc_health", "grpc_reflection", "google.protobuf", "fastapi", "uvicorn", "orjson", "msgspec", "zmq"),
    "pydantic_settings",
)
"""What a server imports beside `TESTING`; grpc is not carried (7 MB): without it what goes through gRPC is left out."""


def unpack(wheels: Path, site: Path) -> int:
    """Every wheel of a folder; how many there were."""
    found = sorted(wheels.glob("*.whl"))
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return len(found)


def missing(names: Sequence[str], path: Sequence[str]) -> list[str]:
    """Import names that are not found along a path; nothing is imported."""
    return [name for name in names if not _found(name, path)]


def _found(name: str, path: Sequence[str]) -> bool:
    head, _, rest = name.partition(".")
    spec = PathFinder.find_spec(head, list(path))
    if spec is None:
        return False
    return not rest or _found(rest, spec.submodule_search_locations or ())
