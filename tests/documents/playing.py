"""Plays blocks of a page as a reader would, in their order: commands of mfalcon in this process, curl's requests, and
programs in Python, which share their names as one who types them into a session has it.
"""

import ast
import asyncio
import inspect
import io
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FunctionType
from unittest import mock

from mfalcon.cli.main import main
from tests.documents.reading import Block, Command, commands

SPEAK = ("load", "ingest", "rank", "history", "interests", "delete")
"""Commands that ask a server at 127.0.0.1:50051 unless --target says otherwise."""
APART = ("tritonclient",)
"""Packages that bring messages of the same names as ours, so a process has either."""
HOSTS = r"(?<![\w.])(?:localhost|127\.0\.0\.1|ranker\.internal|ranker)"


@dataclass(slots=True)
class Session:
    """A reader's: the addresses of the server that runs, what the commands printed, and the names that programs made.
    more: options that a command is given beside those of the page, by its name; instead: values of options that are
    not the page's. loop: runs what awaits; that of the server, if it is in this process: gRPC knows one loop alone.
    """

    grpc: str = ""
    http: str = ""
    more: dict[str, tuple[str, ...]] = field(default_factory=dict)
    instead: dict[str, str] = field(default_factory=dict)
    loop: asyncio.AbstractEventLoop | None = None
    said: list[str] = field(default_factory=list)
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "reader"})

    def here(self, text: str) -> str:
        """Text with the addresses of the server that runs in the place of the usual ones."""
        for port, address in (("50051", self.grpc), ("8080", self.http)):
            text = re.sub(rf"{HOSTS}:{port}\b", address or rf"127.0.0.1:{port}", text)
        return text

    def play(self, block: Block) -> None:
        """Run a block of commands, or of Python. AssertionError, or what the program raises, says what is wrong."""
        if block.language == "python":
            self.python(block)
        for command in commands(block):
            self.run(command)

    def run(self, command: Command) -> str:
        """What a command prints; it must end well."""
        program, *words = map(self.here, command.words)
        if program == "mfalcon":
            words = [self.instead.get(before, word) for before, word in pairwise(["", *words])]
            target = ("--target", self.grpc) if words[0] in SPEAK and "--target" not in words else ()
            said = called(*words, *self.more.get(words[0], ()), *target)
        elif program == "curl":
            said = curl(words)
        elif program == "python" and words[0] == "-c":
            said = python_c(*words[1:])
        else:
            raise AssertionError(f"{command}: nobody plays {program} here")
        if command.into:
            Path(command.into).write_text(said, encoding="utf-8")
        self.said.append(said)
        return said

    def python(self, block: Block) -> None:
        """Run a program; what it prints is kept too."""
        if any(f"import {module}" in block.text for module in APART):
            command = [sys.executable, "-c", self.here(block.text)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            assert done.returncode == 0, done.stderr
            self.said.append(done.stdout)
            return
        code = compile(self.here(block.text), f"{block.page}:{block.line}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with redirect_stdout(io.StringIO()) as out:
            if code.co_flags & inspect.CO_COROUTINE:
                assert self.loop is not None, "nobody runs what awaits"
                asyncio.run_coroutine_threadsafe(FunctionType(code, self.names)(), self.loop).result(120)
            else:
                exec(code, self.names)  # noqa: S102 (our own documents)
        self.said.append(out.getvalue())


def called(*words: str) -> str:
    """What `mfalcon` prints on standard output when it is called so, in this process."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with mock.patch.object(sys, "argv", ["mfalcon", *words]), redirect_stdout(out), ending_well(words):
        main()
    out.seek(0)
    return out.read()


@contextmanager
def ending_well(words: tuple[str, ...]) -> Iterator[None]:
    """A command ends by SystemExit without a code."""
    try:
        yield
    except SystemExit as end:
        assert not end.code, f"mfalcon {' '.join(words)} ends with {end.code}"
    else:
        raise AssertionError(f"mfalcon {' '.join(words)} has not ended")


def python_c(text: str, *arguments: str) -> str:
    """What a program on a command line prints."""
    with mock.patch.object(sys, "argv", ["-c", *arguments]), redirect_stdout(io.StringIO()) as out:
        exec(compile(text, "-c", "exec"), {"__name__": "__main__"})  # noqa: S102 (our own documents)
    return out.getvalue()


def curl(words: list[str]) -> str:
    """What curl prints, by the few options that the pages use; an answer that is no success raises HTTPError."""
    method, body, headers, url, rest = None, None, {}, "", iter(words)
    for word in rest:
        if word in ("-X", "-d", "-H", "--data", "--data-binary", "--request", "--header"):
            value = next(rest)
            if word in ("-X", "--request"):
                method = value
            elif word in ("-H", "--header"):
                name, _, of = value.partition(":")
                headers[name] = of.strip()
            else:
                body = Path(value[1:]).read_bytes() if value.startswith("@") else value.encode()
        elif not word.startswith("-"):
            url = word if word.startswith("http") else f"http://{word}"
        else:
            assert re.fullmatch("-[sSfNi]+", word), f"curl: nobody knows {word} here"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=60) as answer:
        return str(answer.read().decode())
