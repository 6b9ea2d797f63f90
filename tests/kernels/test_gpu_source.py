"""Rules that Triton's compiler does not hold: what the source of every kernel must not say."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels import gpu

SOURCES = sorted(Path(next(iter(gpu.__path__))).glob("*.py"))


def jitted(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(by) for by in node.decorator_list):
            yield node


def constants(function: ast.FunctionDef) -> set[str]:
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return {a.arg for a in arguments if a.annotation is not None and ast.unparse(a.annotation).endswith("constexpr")}


def over_tensors(node: ast.AST, known: set[str]) -> bool:
    """Whether Python's own `and`, `or`, `not` or a chain of comparisons stands over more than constants."""
    truth = (
        isinstance(node, ast.BoolOp)
        or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))
        or (isinstance(node, ast.Compare) and len(node.ops) > 1)
    )
    return truth and any(isinstance(name, ast.Name) and name.id not in known for name in ast.walk(node))


def leaves_open(node: ast.AST) -> bool:
    """Whether a masked load does not say what stands for what is masked."""
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.load"):
        return False
    given = {keyword.arg for keyword in node.keywords} | {
        ("pointer", "mask", "other")[i] for i in range(len(node.args))
    }
    return "mask" in given and "other" not in given


def faults(source: str) -> list[str]:
    """Line and text of what must not be said."""
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for function in jitted(ast.parse(source))
        for node in ast.walk(function)
        if isinstance(node, ast.expr) and (over_tensors(node, constants(function)) or leaves_open(node))
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_kernels_mask_with_operators_and_say_what_is_masked(path: Path) -> None:
    """On tensors `&`, `|` and `== 0`, never `and`, `or`, `not` or a chain of comparisons, which ask one truth of a
    whole tile; and no masked load without `other=`, which would read anything.
    """
    assert faults(path.read_text()) == []


def test_every_kernel_was_looked_at() -> None:
    names = {function.name for path in SOURCES for function in jitted(ast.parse(path.read_text()))}
    assert {"target_attention_kernel", "prefix_attention_kernel", "kv_write_kernel", "linear_kernel"} <= names


@pytest.mark.parametrize(
    "line",
    [
        "y = x > 0 and x < N",
        "y = (x > 0) or WIDE",
        "if not x: pass",
        "y = 0 < x < N",
        "y = tl.load(P + x, mask=x < N)",
        "y = tl.load(P + x, x < N)",
    ],
)
def test_faults_are_found(line: str) -> None:
    head = "@triton.jit\ndef kernel(P, x, N: tl.constexpr, WIDE: tl.constexpr):\n    "
    assert len(faults(head + line)) == 1


@pytest.mark.parametrize(
    "line", ["if WIDE and not N > 3: pass", "y = (x > 0) & (x < N)", "y = tl.load(P + x, mask=x < N, other=0.0)"]
)
def test_what_is_right_is_no_fault(line: str) -> None:
    head = "@triton.jit\ndef kernel(P, x, N: tl.constexpr, WIDE: tl.constexpr):\n    "
    assert faults(head + line) == []
