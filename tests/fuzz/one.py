"""Fuzz one surface with atheris: `python -m tests.fuzz.one SURFACE`, with options and directories of libFuzzer."""

import sys

import atheris

from tests.fuzz.surfaces import surface

if __name__ == "__main__":
    with atheris.instrument_imports(include=["server", "mfalcon"]):
        fuzzed = surface(sys.argv[1])
    atheris.Setup([sys.argv[0], *sys.argv[2:]], fuzzed.target, enable_python_coverage=True)
    atheris.Fuzz()
