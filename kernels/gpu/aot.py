"""Every kernel compiled ahead of time, on a machine without a GPU: registers, spills and shared memory, held to limits.

`python -m kernels.gpu.aot` calls the ops as production does, on tensors without memory and under a driver that only
names its architecture, catches what Triton is asked to compile, and reads the machine code. A case fails that spills,
that needs more than the limits of this version of Triton grant it (`kernels.gpu.limits`; `--write` grants what it needs
now), or whose machine code lacks an instruction that it was written for. Where all hold, that is kept for the sources
that they were compiled from (`kernels.gpu.proof`), and with `--changed` a few are enough until these change.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JitFunctionInfo

from kernels.gpu import configs, limits, proof
from kernels.gpu.aot_cases import ARCHITECTURES, Case, cases
from kernels.gpu.interpreter import interpreted
from kernels.gpu.limits import Figures

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_RESERVED = 1024
"""Bytes of shared memory that the system takes of a program from 9.0 on, beyond what a program may have."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a case came to. lacks: the expected instructions that its machine code has not."""

    key: str
    figures: Figures
    lacks: tuple[str, ...]


class _Driver:
    """A driver of a device that is not there."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(case: Case) -> Compiled:
    """One case through Triton, LLVM and ptxas."""
    caught: list[tuple[Any, dict[str, int]]] = []

    def catch(*, fn: JitFunctionInfo, compile: Mapping[str, Any], **_: object) -> bool:
        source = fn.jit_function.ASTSource(
            fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0]
        )
        caught.append((source, {name: compile[name] for name in ("num_warps", "num_stages")}))
        return True  # leave it at that

    device = configs.Device("", case.architecture, 100)
    driver = _Driver(case.architecture)
    triton.runtime.driver.set_active(driver)
    knobs.compilation.disable_line_info = True
    with (
        mock.patch.object(knobs.runtime, "jit_cache_hook", catch),
        mock.patch.object(configs, "device", lambda _: device),
    ):
        case.call()
    ((source, options),) = caught
    built = triton.compile(source, target=driver.get_current_target(), options=options)
    figures, listing = _read(built.asm["cubin"], built.metadata.shared, bool(case.instructions))
    return Compiled(case.key, figures, tuple(name for name in case.instructions if name not in listing))


def all_compiled(wanted: Sequence[Case], num_processes: int = 1) -> tuple[list[Compiled], list[str]]:
    """Several at a time. Where a process dies, what was left is compiled again one by one: the second are the keys of
    those whose process died again.
    """
    done: dict[str, Compiled] = {}
    with _pool(num_processes) as pool:
        futures = {pool.submit(compiled, case): case.key for case in wanted}
        for future in as_completed(futures):
            error = future.exception()
            if error is None:
                done[futures[future]] = future.result()
            elif not isinstance(error, BrokenProcessPool):
                pool.shutdown(cancel_futures=True)
                raise RuntimeError(f"{futures[future]}: does not compile") from error
    lost = []
    for case in wanted:
        if case.key not in done:
            print(f"{case.key}: again, as a compiler died", file=sys.stderr)
            try:
                with _pool(1) as pool:
                    done[case.key] = pool.submit(compiled, case).result()
            except BrokenProcessPool:
                lost.append(case.key)
    return list(done.values()), lost


def _pool(num_processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"))


def _read(cubin: bytes, shared: int, with_code: bool) -> tuple[Figures, str]:
    """What machine code takes; with_code: and its listing, for which a disassembler takes longer than for the rest."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", *(["--dump-sass"] if with_code else []), file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    static = max(0, usage["SHARED"] - _RESERVED)
    return Figures(usage["REG"], usage["STACK"] + usage["LOCAL"], shared + static), text


def main() -> int:
    """Compile, and check or write; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description="Compile every GPU kernel ahead of time and check what it needs.")
    parser.add_argument("--architecture", type=int, nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose key has a match")
    parser.add_argument("--changed", action="store_true", help="all of them only if a source changed, else a few")
    parser.add_argument("--processes", type=int, default=2, help="how many compile at a time [%(default)s]")
    parser.add_argument("--write", action="store_true", help="write these cases' limits instead of checking them")
    parser.add_argument("--json", action="store_true", help="print the figures of every case as JSON")
    arguments = parser.parse_args()
    if interpreted():
        print("triton interprets kernels here: unset TRITON_INTERPRET to compile them", file=sys.stderr)
        return 1
    path = limits.path_of(triton.__version__)
    if not path.is_file() and not arguments.write:
        print(no_limits(triton.__version__), file=sys.stderr)
        return 1
    every = [case for architecture in ARCHITECTURES for case in cases(architecture)]
    wanted = [
        case for case in every if case.architecture in arguments.architecture and re.search(arguments.only, case.key)
    ]
    if arguments.changed and proof.holds(triton.__version__):
        few = proof.sample([case.key for case in wanted])
        wanted = [case for case in wanted if case.key in few]
    results, lost = all_compiled(wanted, arguments.processes)
    found = {result.key: result.figures for result in results}
    if arguments.json:
        print(json.dumps({key: astuple(figures) for key, figures in found.items()}, indent=0))
    wrong = [f"{key}: its compiler died" for key in lost]
    wrong += [f"{result.key}: no {name} in its machine code" for result in results for name in result.lacks]
    known = limits.read(path) if path.is_file() else {}
    if arguments.write:
        known |= {key: limits.granted(figures) for key, figures in found.items()}
        known = {case.key: known[case.key] for case in every if case.key in known}
        limits.write(path, known)
    left_out = {case.key for case in every} - {case.key for case in wanted}
    wrong += limits.failures(found, {key: limit for key, limit in known.items() if key not in left_out})
    spilling = {key: figures.spilled for key, figures in found.items() if figures.spilled}
    wrong += [f"{key}: spills {spilled} bytes" for key, spilled in spilling.items() if key not in limits.MAY_SPILL]
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong and not left_out:
        proof.write(triton.__version__)
    print(f"{len(found)} cases, {len(wrong)} failures, triton {triton.__version__}", file=sys.stderr)
    return 1 if wrong else 0


def no_limits(version: str) -> str:
    """What to say of a version of Triton that nobody has written limits for."""
    return (
        f"triton {version}: no limits for its compiler, only for {', '.join(limits.versions())}. Install one of these, "
        f"or write its own with --write and look at what it needs ({limits.path_of(version).name})"
    )


if __name__ == "__main__":
    sys.exit(main())
