"""What a process gives up before it reads a stranger's file: the network, starting other programs, and more memory than
the file accounts for. Linux alone.

By a filter of system calls (seccomp) and limits of resources, which need no rights, reach every thread and cannot be
taken off again.
"""

import contextlib
import ctypes
import platform
import resource
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mfalcon.errors import ConfigError

_NO_NEW_PRIVS: Final = 38
_SET_FILTER, _ALL_THREADS = 1, 1
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of the filter: a word of the call, two jumps, the verdict."""
_NUMBER, _MACHINE = 0, 4
"""Where the call's number and the machine's code stand."""
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001
"""The second makes the call fail with EPERM."""
_FOREIGN_ABI = 0x40000000
"""Numbers of x32 begin here, which are other names of the same calls."""
_STATUS: Final = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class _Machine:
    """Its code, the call that sets a filter, and what is refused: socket, connect, bind, execve, execveat, ptrace,
    io_uring_setup.
    """

    code: int
    seccomp: int
    refused: tuple[int, ...]


_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, 317, (41, 42, 49, 59, 322, 101, 425)),
    "aarch64": _Machine(0xC00000B7, 277, (198, 203, 200, 221, 281, 117, 425)),
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("first", ctypes.POINTER(_Instruction)))


def enter(memory_bytes: int) -> None:
    """Give up the network, other programs, and memory and files beyond so many bytes, for good. Raises ConfigError
    where that cannot be done.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None or platform.system() != "Linux":
        raise ConfigError(
            f"import: a stranger's file is read without network, which cannot be cut off on {platform.system()} "
            f"{platform.machine()}: must be Linux on {' or '.join(_MACHINES)}"
        )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory_bytes, memory_bytes))
    limit = _taken() + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    filter_ = _filter(machine)
    program = _Program(len(filter_), filter_)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    failed = libc.syscall(machine.seccomp, _SET_FILTER, _ALL_THREADS, ctypes.byref(program))
    if failed or _reaches_network():
        raise ConfigError("import: the kernel does not cut the network off (seccomp); a stranger's file is not read")


def _taken() -> int:
    """Bytes of memory that count already, those of torch and its threads."""
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmData:")]
    return int(line.split()[1]) << 10


def _filter(machine: _Machine) -> "ctypes.Array[_Instruction]":
    """Refuse calls of another machine's numbers, and those of the list."""
    checks = [(_IF_EQUAL, number) for number in machine.refused]
    checks.insert(0, (_IF_AT_LEAST, _FOREIGN_ABI))
    steps = [(_LOAD, 0, 0, _MACHINE), (_IF_EQUAL, 0, len(checks) + 2, machine.code), (_LOAD, 0, 0, _NUMBER)]
    steps += [(code, len(checks) - index, 0, k) for index, (code, k) in enumerate(checks)]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))


def _reaches_network() -> bool:
    with contextlib.suppress(PermissionError):
        socket.socket().close()
        return True
    return False
