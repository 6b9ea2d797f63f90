"""Nothing that is read is run: no pickle, torch.load, eval, exec, marshal or yaml.load, but in one named file.

The linter refuses the names; here it is held that it does, and what has no such name is looked for.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("client", "kernels", "loadtest", "mfalcon", "server", "tests")
SOURCES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))
MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"),
    *("multiprocessing.connection", "multiprocessing.managers", "torch.hub"),
}
REFUSED = {
    "import pickle": "TID251",
    "from pickle import loads": "TID251",
    "import _pickle": "TID251",
    "import marshal": "TID251",
    "import shelve": "TID251",
    "import dill": "TID251",
    "import joblib": "TID251",
    "import cloudpickle": "TID251",
    "from multiprocessing.connection import Listener": "TID251",
    "from multiprocessing.managers import BaseManager": "TID251",
    "from multiprocessing.shared_memory import SharedMemory": "TID251",
    "import torch\ntorch.load('x')": "TID251",
    "import torch\ntorch.load('x', weights_only=True)": "TID251",
    "import torch as t\nt.load('x')": "TID251",
    "from torch import load": "TID251",
    "import torch\ntorch.save({}, 'x')": "TID251",
    "import torch\ntorch.hub.load('x', 'y')": "TID251",
    "import yaml\nyaml.load('x', yaml.Loader)": "S506",
    "import yaml\nyaml.unsafe_load('x')": "TID251",
    "eval('1')": "S307",
    "import builtins\nbuiltins.eval('1')": "S307",
    "exec('1')": "S102",
}
"""Code, and the rule that refuses it."""
SEEN_HERE = {
    "import importlib\nimportlib.import_module('pickle')": "imports pickle by name",
    "__import__('marshal')": "imports marshal by name",
    "import numpy\nnumpy.load('x', allow_pickle=True)": "allow_pickle",
    "f = getattr(object, 'eval')": "getattr of eval",
    "f = eval": "eval without a call",
    "f = [exec]": "exec without a call",
    "def f(socket):\n    socket.recv_pyobj()": "recv_pyobj",
    "def f(socket):\n    socket.send_pyobj(1)": "send_pyobj",
    "import polars\npolars.read_ipc_pickle('x')": "read_ipc_pickle",
    "compile('1', 'f', 'eval')": "compile to code",
    "class A:\n    def __reduce__(self):\n        return 1": "__reduce__",
}
"""Code that ruff lets pass, and what is said of it."""
METHODS = ("recv_pyobj", "send_pyobj", "read_ipc_pickle", "read_pickle", "to_pickle")
HOOKS = ("__reduce__", "__reduce_ex__")


def complaints(source: str) -> list[str]:
    """What is wrong with a file, beyond what the linter says."""
    found = []
    tree = ast.parse(source)
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        match node:
            case ast.Call(ast.Name("__import__") | ast.Attribute(_, "import_module"), [ast.Constant(str(name)), *_]):
                if name in MODULES:
                    found.append(f"imports {name} by name")
            case ast.Call(ast.Name("getattr"), [_, ast.Constant("eval" | "exec" as name), *_]):
                found.append(f"getattr of {name}")
            case ast.Call(ast.Name("compile")):
                found.append("compile to code")
            case ast.keyword("allow_pickle", value) if not (isinstance(value, ast.Constant) and value.value is False):
                found.append("allow_pickle")
            case ast.Attribute(_, name) if name in METHODS:
                found.append(name)
            case ast.Name("eval" | "exec" as name, ast.Load()) if node not in called:
                found.append(f"{name} without a call")
            case ast.FunctionDef(name) if name in HOOKS:
                found.append(name)
    return found


@pytest.mark.parametrize("code", SEEN_HERE)
def test_what_the_linter_cannot_see_is_seen(code: str) -> None:
    assert SEEN_HERE[code] in complaints(code)


def test_no_file_of_ours_runs_what_it_reads() -> None:
    assert len(SOURCES) > 500
    found = {str(path.relative_to(ROOT)): complaints(path.read_text()) for path in SOURCES}
    found = {path: what for path, what in found.items() if what}
    # The documents' examples are run: they are ours.
    assert found == {
        "tests/documents/playing.py": ["compile to code", "compile to code"],
        "tests/documents/test_names.py": ["compile to code"],
    }


def test_the_linter_refuses_each_of_these(tmp_path: Path) -> None:
    """By our own settings: a rule that somebody takes out is missed here."""
    for number, code in enumerate(REFUSED):
        (tmp_path / f"case_{number}.py").write_text(f"{code}\n")
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json"]
    command += ["--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    told: dict[str, set[str]] = {}
    for complaint in json.loads(answer.stdout):
        told.setdefault(Path(complaint["filename"]).name, set()).add(complaint["code"])
    for number, (code, rule) in enumerate(REFUSED.items()):
        assert rule in told.get(f"case_{number}.py", set()), code


def test_each_exception_to_the_linter_has_its_reason() -> None:
    """Of the rules of this file: a test that changes a kernel of ours; what runs the documents' own examples; what
    reads a checkpoint of another trainer, in `mfalcon/importing/unpickling.py`, which says how no code is run; and the
    tests that write and attack those.
    """
    marks = ("noqa: S102", "noqa: S301", "noqa: S302", "noqa: S307", "noqa: S506", "noqa: TID251")
    excepted = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if path.name != Path(__file__).name and any(mark in path.read_text() for mark in marks)
    ]
    assert excepted == [
        "mfalcon/importing/unpickling.py",
        "tests/documents/playing.py",
        "tests/importing/recsys_writer.py",
        "tests/importing/test_hostile.py",
        "tests/importing/writer.py",
        "tests/kernels/hopper_machine.py",
    ]


def test_what_reads_pickles_is_never_imported_by_a_server() -> None:
    """Only by the command that imports, and there in a process of its own."""
    readers = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if not path.is_relative_to(ROOT / "tests") and "mfalcon.importing" in path.read_text()
    ]
    assert all(path.startswith("mfalcon/importing/") or path == "mfalcon/cli/import_model.py" for path in readers)
