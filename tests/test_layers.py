"""The layers of ARCHITECTURE.md: imports point one way, by full name, at the top of the file."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("kernels", "mfalcon", "server", "loadtest", "mfalcon_client")

ROOMS: dict[str, tuple[str, ...]] = {
    # room: the modules in it; the longest name that fits a module is its room
    "kernels": ("kernels",),
    "words": (
        "mfalcon",
        "mfalcon.types",
        "mfalcon.interests",
        "mfalcon.errors",
        "mfalcon.item_ids",
        "mfalcon.returned",
        "mfalcon.clock",
        "mfalcon.window",
        "mfalcon.pairs",
        "mfalcon.load",
        "mfalcon.cgroup",
        "mfalcon.cores",
        "mfalcon.beside",
        "mfalcon.memory",
        "mfalcon.rank_key",
        "mfalcon.best_first",
        "mfalcon.pseudonym",
        "mfalcon.scope",
        "mfalcon.spans",
    ),
    "text ids": ("mfalcon.text_ids",),
    "metrics": ("mfalcon.metrics",),
    "history": ("mfalcon.history",),
    "redis": ("mfalcon.redis",),
    "kv": ("mfalcon.kvcache.state", "mfalcon.kvcache.block_pool"),
    "kvcache": ("mfalcon.kvcache",),
    "attention": ("mfalcon.attention", "mfalcon.masked_attention"),
    "config": (
        "mfalcon.models.config",
        "mfalcon.models.config_features",
        "mfalcon.models.config_kinds",
        "mfalcon.models.config_layers",
        "mfalcon.models.config_parts",
        "mfalcon.models.items",
        "mfalcon.models.manifest",
        "mfalcon.models.sealed_file",
        "mfalcon.models.texts",
    ),
    "features": ("mfalcon.features",),
    "counters": ("mfalcon.counters",),
    "graph": ("mfalcon.graph",),
    "capture": ("mfalcon.capture",),
    "models": ("mfalcon.models",),
    "backends": ("mfalcon.backends",),
    "deltas": ("mfalcon.items.delta", "mfalcon.items.delta_file", "mfalcon.items.messages"),
    "items": ("mfalcon.items",),
    "algorithm": ("mfalcon.algorithm",),
    "rerank": ("mfalcon.rerank",),
    "merging": ("mfalcon.merging",),
    "engine": ("mfalcon.engine",),
    "replay": ("mfalcon.replay",),
    "laws": ("mfalcon.laws",),
    "ingest": ("mfalcon.ingest",),
    "train": ("mfalcon.train",),
    "planner": ("mfalcon.planner",),
    "importing": ("mfalcon.importing",),
    "testing": ("mfalcon.testing",),
    "proto": ("proto",),
    "client": ("mfalcon_client",),
    "server": ("server",),
    "app": ("server.app", "server.options", "server.service"),
    "loadtest": ("loadtest",),
    "cli": ("mfalcon.cli",),
}

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # room: the rooms below it that it may import, besides itself
    "kernels": (),
    "words": (),
    "text ids": ("kernels", "words"),
    "metrics": ("words",),
    "history": ("words", "metrics", "redis"),
    "redis": ("words", "metrics"),
    "kv": ("kernels", "words"),
    "kvcache": ("kernels", "words", "metrics", "history", "redis", "kv"),
    "attention": ("kernels", "words", "kv"),
    "config": ("words",),
    "features": ("words", "config"),
    "counters": ("words", "metrics", "history", "redis", "config", "features"),
    "graph": ("words", "config", "features"),
    "capture": ("words", "metrics", "history", "features", "counters"),
    "models": ("kernels", "words", "kv", "attention", "config"),
    "backends": ("kernels", "words", "kv", "attention", "config", "models"),
    "deltas": ("words", "config", "proto"),
    "items": ("deltas", "words", "history", "kvcache", "config", "features", "models", "backends"),
    "algorithm": ("words", "kv", "attention", "models", "backends"),
    "rerank": ("words", "config"),
    "merging": ("words",),
    "engine": (
        "kernels",
        "words",
        "metrics",
        "history",
        "redis",
        "kv",
        "kvcache",
        "config",
        "features",
        "counters",
        "capture",
        "models",
        "backends",
        "items",
        "deltas",
        "graph",
        "algorithm",
        "rerank",
        "merging",
    ),
    "replay": (
        "words",
        "history",
        "kvcache",
        "features",
        "counters",
        "capture",
        "models",
        "backends",
        "merging",
        "engine",
    ),
    "laws": (
        "words",
        "history",
        "kv",
        "kvcache",
        "attention",
        "config",
        "features",
        "counters",
        "models",
        "backends",
        "algorithm",
        "engine",
    ),
    "ingest": ("words", "client"),
    "train": ("words", "attention", "deltas", "config", "features", "graph", "models", "rerank", "merging"),
    "planner": ("words", "config", "models", "engine", "train"),
    "importing": ("words", "attention", "config", "models", "backends", "algorithm"),
    "testing": ("words", "config", "models", "backends", "algorithm", "engine", "laws"),
    "proto": (),
    "client": (),
    "server": ("words", "text ids", "metrics", "config", "deltas", "graph", "proto", "client"),
    "app": (
        "capture",
        "rerank",
        "words",
        "metrics",
        "history",
        "redis",
        "kvcache",
        "config",
        "models",
        "backends",
        "merging",
        "items",
        "deltas",
        "graph",
        "engine",
        "server",
    ),
    "loadtest": tuple(room for room in ROOMS if room not in ("loadtest", "server", "app", "cli")),
    "cli": tuple(room for room in ROOMS if room != "cli"),
}

FREE_OF_TORCH = (
    "words",
    "deltas",
    "metrics",
    "history",
    "redis",
    "config",
    "features",
    "counters",
    "graph",
    "capture",
    "rerank",
    "merging",
    "ingest",
    "client",
    "server",
)

OPTIONAL = (
    "confluent_kafka",
    "faiss",
    "gevent",
    "httpx",
    "jwt",
    "locust",
    "matplotlib",
    "opentelemetry",
    "polars",
    "simpy",
    "sklearn",
    "triton",
    "uvloop",
)
"""Packages of the extras: what needs them may be imported where it is used."""

NEEDS_OPTIONAL = (
    "kernels.gpu",
    "loadtest.bench.kernels",
    "loadtest.bench.gpu_stacks",
    "loadtest.bench.gpu_tune",
    "loadtest.load.http_target",
    "loadtest.load.process_metrics",
    "loadtest.scale",
    "mfalcon.backends.triton",
    "server.access.json_web_tokens",
    "mfalcon.train.boosted_trees",
    "mfalcon.ingest.kafka",
    "mfalcon.ingest.topic",
    "mfalcon.train.frames",
    "mfalcon.train.table",
    "mfalcon.train.table_columns",
    "mfalcon.train.table_events",
    "mfalcon.train.table_items",
)
"""Our own modules that import an optional package at their top."""


def modules() -> dict[str, Path]:
    roots = {package: ROOT / "client" if package == "mfalcon_client" else ROOT for package in PACKAGES}
    return {
        _name(path.relative_to(root)): path
        for package, root in roots.items()
        for path in (root / package).rglob("*.py")
    }


def _name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = modules()


def room_of(module: str) -> str | None:
    fits = [(len(name), room) for room, names in ROOMS.items() for name in names if _inside(module, name)]
    return max(fits)[1] if fits else None


def _inside(module: str, package: str) -> bool:
    if package == "mfalcon":  # the package's own __init__, not every module in it
        return module == "mfalcon"
    return module == package or module.startswith(f"{package}.")


def imports(node: ast.AST) -> Iterator[str]:
    """Full names that the imports below a node bring in; `from a import b` is a.b where that is a module, else a."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module, f"line {child.lineno}: relative import"
            for alias in child.names:
                deeper = f"{child.module}.{alias.name}"
                yield deeper if deeper in MODULES else child.module


@dataclass(frozen=True, slots=True)
class Facts:
    """imports: full names. inside: functions with what they import. names: all that is called or read."""

    imports: frozenset[str]
    inside: frozenset[tuple[str, str]]
    names: frozenset[str]


@cache
def facts(module: str) -> Facts:
    tree = ast.parse(MODULES[module].read_text(), filename=str(MODULES[module]))
    inside, names = set[tuple[str, str]](), set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                inside |= {(node.name, imported) for imported in imports(node)}
            case ast.Name():
                names.add(node.id)
            case ast.Attribute():
                names.add(node.attr)
    return Facts(frozenset(imports(tree)), frozenset(inside), frozenset(names))


def test_the_table_is_one_way() -> None:
    assert ROOMS.keys() == MAY_IMPORT.keys()
    assert set(TopologicalSorter(MAY_IMPORT).static_order()) == set(ROOMS)


def test_every_module_has_a_room_and_keeps_to_it() -> None:
    for module in MODULES:
        room = room_of(module)
        assert room is not None, f"{module} is in no room of the table"
        for imported in facts(module).imports:
            if imported.partition(".")[0] in (*PACKAGES, "proto"):
                other = room_of(imported)
                assert other is not None, f"{module} imports {imported}, which is in no room of the table"
                assert other == room or other in MAY_IMPORT[room], f"{module} ({room}) imports {imported} ({other})"


def test_rooms_without_torch() -> None:
    for module in (name for name in MODULES if room_of(name) in FREE_OF_TORCH):
        heavy = [name for name in facts(module).imports if name.partition(".")[0] in ("torch", "kernels")]
        assert not heavy, f"{module} imports {heavy}"


def test_imports_inside_functions_delay_optional_packages_only() -> None:
    """And the server: the help of `mfalcon serve` and what it refuses need no torch."""
    for module in MODULES:
        for function, imported in facts(module).inside:
            delayed = imported.partition(".")[0] in OPTIONAL or any(_inside(imported, name) for name in NEEDS_OPTIONAL)
            delayed |= (module, imported) == ("mfalcon.cli.serve", "server.app")
            assert delayed, f"{module}: {function} imports {imported} inside"


def test_only_the_command_line_imports_by_name() -> None:
    """Its table of subcommands is the one exception: whoever calls one pays for no other."""
    for module in MODULES:
        assert module == "mfalcon.cli.main" or not facts(module).names & {"import_module", "__import__"}, module


def test_what_needs_an_optional_package_says_so_truly() -> None:
    """A module of `NEEDS_OPTIONAL` reaches an optional package through imports at the top, or the delay is for
    nothing.
    """

    def reaches(module: str, seen: set[str]) -> bool:
        if module.partition(".")[0] in OPTIONAL:
            return True
        if module not in MODULES or module in seen:
            return False
        seen.add(module)
        return any(reaches(name, seen) for name in facts(module).imports)

    for name in NEEDS_OPTIONAL:
        inside = [module for module in MODULES if _inside(module, name)]
        assert any(reaches(module, set()) for module in inside), name


def test_the_transports_do_not_see_each_other() -> None:
    seen = {name: facts(name).imports for name in ("server.grpc.api", "server.http.api")}
    assert "server.http.api" not in seen["server.grpc.api"]
    assert "server.grpc.api" not in seen["server.http.api"]
