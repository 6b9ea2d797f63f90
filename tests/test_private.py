"""A test touches nothing private of a class: what it needs to know is answered, told or seen from outside."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OWN = ("self", "cls", "super()")
ALLOWED = {
    # file: what it touches, of the very class that it tests, whose state no answer shows
    "gpu/test_device.py": {"copier._to_device"},  # only a busy stream makes a copy late for certain
    "kvcache/test_block_pool.py": {"accounts._free"},
    "kvcache/test_cost.py": {"cost._cells", "cost._moment"},
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def touched(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Names that are read, written or patched, each with its owner."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(owner, name):
                yield ast.unparse(owner), name
            case ast.Call(ast.Attribute(_, "setattr"), [ast.Constant(str(path)), *_]):
                owner_path, _, name = path.rpartition(".")
                yield owner_path, name
            case ast.Call(ast.Attribute(_, "setattr"), [owner, ast.Constant(str(name)), *_]):
                yield ast.unparse(owner), name


def imported(tree: ast.AST) -> set[str]:
    """Names that a file imports, and the packages that a patch by its path may begin with."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.asname or alias.name.partition(".")[0] for node in imports for alias in node.names}
    return names | {"kernels", "loadtest", "mfalcon", "server"}


def of_classes(source: str) -> set[str]:
    """What a file touches that is private, and no module's: those are imported, and written small."""
    tree = ast.parse(source)
    roots = imported(tree)
    return {
        f"{owner}.{name}"
        for owner, name in touched(tree)
        if is_private(name) and owner not in OWN
        if not (owner.partition(".")[0] in roots and owner.rpartition(".")[2].islower())
    }


def test_nothing_private_of_a_class_is_touched() -> None:
    found = {str(path.relative_to(TESTS)): of_classes(path.read_text()) for path in TESTS.rglob("*.py")}
    assert not {path: names for path, names in found.items() if not names <= ALLOWED.get(path, set())}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("log._num_bytes = 0", {"log._num_bytes"}),
        ("f(x)[0]._y.z", {"f(x)[0]._y"}),
        ("monkeypatch.setattr(Runner, '_need', f)", {"Runner._need"}),
        ("monkeypatch.setattr('kernels.gpu.stack.GpuStack._last', f)", {"kernels.gpu.stack.GpuStack._last"}),
        ("monkeypatch.setattr('mfalcon.history.deletions._PAGE', 2)", set()),
        ("import mfalcon.engine.step\nmfalcon.engine.step._begun", set()),
        ("from mfalcon import laws\nlaws._worst", set()),
        ("self._x, cls._x, super()._x, x.__dict__", set()),
    ],
)
def test_the_search_itself(line: str, found: set[str]) -> None:
    assert of_classes(line) == found
