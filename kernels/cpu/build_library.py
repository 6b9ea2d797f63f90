"""Compile the fused CPU kernel: `python -m kernels.cpu.build_library`. No request does; the server runs without it.

One shared library per policy (instruction set and number format), in `kernels/cpu/build/`. A library's name carries a
hash of the sources and flags it was made from, so a stale one is never loaded and a second run compiles nothing.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "src"
BUILD = Path(__file__).resolve().parent / "build"

_FLAGS = (
    "-std=c++20",
    "-O2",
    "-g1",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
_COMPILERS = ("c++", "g++", "clang++")
_AVX512 = (
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    "-Wno-maybe-uninitialized",  # false alarms in GCC 12's own headers
)


@dataclass(frozen=True, slots=True)
class Policy:
    """One way to compute. `cpu_flags` are names of /proc/cpuinfo that a processor must have to run it."""

    name: str
    element: str
    compiler_flags: tuple[str, ...]
    cpu_flags: frozenset[str]


POLICIES = {
    policy.name: policy
    for policy in (
        Policy(
            "avx512_bf16",
            "bfloat16",
            (*_AVX512, "-mavx512bf16"),
            frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}),
        ),
        Policy("avx512_f32", "float32", _AVX512, frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})),
        Policy("avx2_f32", "float32", ("-mavx2", "-mfma"), frozenset({"avx2", "fma"})),
        Policy("portable_f32", "float32", (), frozenset()),
        Policy("portable_bf16", "bfloat16", (), frozenset()),
    )
}
"""Fastest first. The portable ones run anywhere: for tests of what this processor lacks, and for other processors."""

TEXT_IDS = Policy("text_ids", "int64", (), frozenset())
"""No way to compute a stack, but a library beside them: item ids that are text to their numbers."""


def library_path(policy: Policy, sanitize: str = "") -> Path:
    """Where the library of the present sources is or would be. sanitize: as for the compiler's -fsanitize."""
    digest = hashlib.sha256(repr((_FLAGS, policy.compiler_flags, sanitize)).encode())
    for source in [*sorted(SOURCES.glob("*.h")), SOURCES / f"{policy.name}.cpp"]:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    variant = f"-{sanitize.replace(',', '-')}" if sanitize else ""
    return BUILD / f"{policy.name}{variant}-{digest.hexdigest()[:16]}.so"


def cpu_flags() -> frozenset[str]:
    """Names of /proc/cpuinfo; none on other processors than x86."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if _is_x86() else []
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def find_compiler() -> str | None:
    """The first C++ compiler on the path."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


def compile_policy(compiler: str, policy: Policy, sanitize: str = "") -> Path:
    """Compile one library unless it is there. Raises subprocess.CalledProcessError with the compiler's messages."""
    path = library_path(policy, sanitize)
    if path.exists():
        return path
    BUILD.mkdir(exist_ok=True)
    variant = path.name.rpartition("-")[0]
    extra = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"] if sanitize else []
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        made = Path(folder) / path.name
        command = [
            compiler,
            *_FLAGS,
            *policy.compiler_flags,
            *extra,
            str(SOURCES / f"{policy.name}.cpp"),
            "-o",
            str(made),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)
        os.replace(made, path)  # never half a library under its name
    for stale in BUILD.glob(f"{variant}-{'[0-9a-f]' * 16}.so"):
        if stale != path:
            stale.unlink(missing_ok=True)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile every policy that the compiler knows; 1 if one fails that this processor could run, or is required."""
    parser = argparse.ArgumentParser(prog="python -m kernels.cpu.build_library", description=__doc__)
    parser.add_argument("--fit", action="store_true", help="only those that this processor would choose")
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="only this one; may be repeated")
    parser.add_argument("--require", action="store_true", help="fail if there is no compiler or a policy fails")
    parser.add_argument("--sanitize", default="", metavar="KINDS", help="instrument, as in address,undefined")
    options = parser.parse_args(arguments)
    compiler = find_compiler()
    if compiler is None:
        print(f"no C++ compiler found (looked for {', '.join(_COMPILERS)}): the server will use the torch kernels")
        return 1 if options.require else 0
    wanted = [
        POLICIES[name] for name in options.policy or POLICIES if options.policy or _is_wanted(name, fit=options.fit)
    ]
    if not options.policy:
        wanted.append(TEXT_IDS)
    failed = False
    with ThreadPoolExecutor(min(4, len(os.sched_getaffinity(0)))) as compilers:
        compiling = [
            (policy.name, compilers.submit(compile_policy, compiler, policy, options.sanitize)) for policy in wanted
        ]
    for name, compiled in compiling:
        try:
            print(f"{name}: {compiled.result().relative_to(BUILD.parents[2])}")
        except subprocess.CalledProcessError as error:
            failed = True
            print(f"{name}: {compiler} failed\n{error.stderr}", file=sys.stderr)
    return 1 if failed and options.require else 0


def _is_wanted(name: str, *, fit: bool) -> bool:
    """Whether to compile a policy: all that this architecture knows, or only those that `auto` may choose here."""
    flags = POLICIES[name].cpu_flags
    if fit:
        return bool(flags) and flags <= cpu_flags()
    return not flags or _is_x86()


if __name__ == "__main__":
    sys.exit(main())
