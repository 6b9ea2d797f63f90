"""Links between the pages lead somewhere, and what the pages name is there: files, metrics, variables, settings; every
block of Python, TOML and JSON can be read as what it is.
"""

import ast
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mfalcon.errors import MFalconError
from mfalcon.importing.recsys_examples import RecsysSidecar
from mfalcon.importing.sidecar import Sidecar, read_sidecar
from mfalcon.metrics.alerts import RECORDED
from mfalcon.metrics.catalog import METRICS
from mfalcon.train.settings import read_train_file
from server.access.callers_file import parse_callers
from server.config import ServerConfig, load_config
from tests.documents.reading import PAGES, ROOT, TYPED, blocks_of, headings, inline, links

FOLDERS = ("client", "deploy", "docs", "kernels", "loadtest", "mfalcon", "proto", "server", "tests")
MADE = ("docs/results/hostile.md", "tests/test_my_ranker.py")
"""Files that a page has a reader write."""
SOURCES = ("client", "mfalcon", "server")
OTHERS = ("[sources.",)
"""How the settings of other programs begin: Vector's."""


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links((ROOT / page).read_text(encoding="utf-8")):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        path = (ROOT / page).parent / parts.path if parts.path else ROOT / page
        assert path.exists(), link
        if parts.fragment and path.suffix == ".md":
            assert parts.fragment in headings(path), link


@pytest.mark.parametrize("page", TYPED)
def test_files_that_are_named_are_there(page: str) -> None:
    for quote in inline((ROOT / page).read_text(encoding="utf-8")):
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./*-]+", quote) and quote not in MADE:
            name = quote.partition(":")[0]
            assert any(found for base in (ROOT, ROOT / "mfalcon") for found in base.glob(name.rstrip("/"))), quote


@pytest.mark.parametrize("page", TYPED)
def test_metrics_and_variables_that_are_named_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    known = {metric.name for metric in METRICS}
    for name in re.findall(r"(?<![\w./])mfalcon_[a-z0-9_]*[a-z0-9](?![\w.*/])", text):
        assert re.sub(r"_(total|bucket|sum|count)$", "", name) in known | {"mfalcon_client"} or name in known, name
    rules = {rule.name for rule in RECORDED.rules}
    assert set(re.findall(r"(?<![\w./])mfalcon:[a-z0-9_]+:[a-z0-9_]+", text)) <= rules
    variables = {f"MFALCON_{name.upper()}" for name in ServerConfig.model_fields} | {"MFALCON_TOKEN_FILE"}
    assert set(re.findall(r"MFALCON_[A-Z_]*[A-Z]\b", text)) - {"MFALCON_SANITIZE"} <= variables


DEFAULT = re.compile(r"`--([a-z0-9-]+)` (?:\(|\| )(\d[\d,.]*)(?: (s|ms|KiB|MiB|days)\b)?")
UNITS = {"s": (1, 1000), "ms": (1,), "KiB": (1 << 10,), "MiB": (1, 1 << 20), "days": (1,), "": (1,)}
"""What a number of a unit may be in a setting, whose name says seconds, milliseconds, bytes or MiB."""


@pytest.mark.parametrize("page", TYPED)
def test_defaults_that_are_told_are_those(page: str) -> None:
    """A number in brackets, or in the next cell, behind a setting of the server is its default."""
    fields = ServerConfig.model_fields
    for name, number, unit in DEFAULT.findall((ROOT / page).read_text(encoding="utf-8")):
        field = fields.get(name.replace("-", "_"))
        if field is not None and isinstance(field.default, int | float):
            told = float(number.rstrip(".,").replace(",", ""))
            assert field.default in [told * factor for factor in UNITS[unit]], f"--{name} is {field.default}"


def complaints(text: str, path: Path) -> list[str]:
    """What those who read settings say of a text; nothing where one of them takes it."""
    path.write_text(text, encoding="utf-8")
    readers: tuple[Callable[[], object], ...] = (
        lambda: load_config(path, {}),
        lambda: load_config(path, {"redis_url": "redis://localhost"}),  # it comes by the environment
        lambda: read_train_file(path),
        lambda: parse_callers(text.encode(), 0.0),
        lambda: read_sidecar(path, Sidecar),
        lambda: read_sidecar(path, RecsysSidecar),
    )
    said = []
    for reader in readers:
        try:
            reader()
        except (MFalconError, ValueError) as error:
            said.append(str(error))
        else:
            return []
    return said


@pytest.mark.parametrize("page", TYPED)
def test_blocks_can_be_read(page: str, tmp_path: Path) -> None:
    whole = ""
    for block in blocks_of(page):
        if block.language == "python":
            compile(block.text, f"{page}:{block.line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if block.language == "json":
            json.loads(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)
            if block.text.startswith((*OTHERS, "[project.")):
                continue
            text = re.sub(r'"4c1b[^"]*"', f'"{"4c1b" * 16}"', block.text)
            wrong = complaints(text, tmp_path / "settings.toml")
            if wrong and whole:  # a part of the file before
                wrong = complaints(whole + text, tmp_path / "settings.toml")
            assert not wrong, f"{page}:{block.line} is no file of settings"
            whole = text


def test_the_texts_of_troubleshooting_are_ours() -> None:
    """What a reader searches for is what the programs print, but for the parts that differ."""
    source = "".join(path.read_text(encoding="utf-8") for folder in SOURCES for path in (ROOT / folder).rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]*) \|", page, re.MULTILINE)
    texts = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    pieces = [piece.strip(" ,;") for text in texts if text.count(" ") > 1 for piece in text.split("…")]
    assert len(pieces) > 25
    assert not [piece for piece in pieces if piece not in joined]
