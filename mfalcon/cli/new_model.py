"""`mfalcon new-model`: a package with a ranker of one's own, whose tests run."""

import keyword
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated, Final

import typer

from mfalcon.errors import ConfigError
from mfalcon.models.registry import architectures

_FILES: Final = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "src/{name}/model.py": "model.py",
    "conftest.py": "conftest.py",
    "tests/test_{name}.py": "test_model.py",
}
"""Path in the package, and the template beside this file."""
_TEMPLATES: Final = Path(__file__).parent / "new_model_files"


def new_model(
    name: Annotated[str, typer.Argument(help="Name of the package and of its architecture: my_ranker.")],
    folder: Annotated[Path, typer.Option("--in", help="Folder to write it into.")] = Path(),
) -> None:
    """Write a package with a ranker of your own: its entry point, a model, and tests of the laws."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name) or keyword.iskeyword(name):
        raise ConfigError(f"NAME: got {name[:80]!r}, must be lower case letters, digits and _, and a letter first")
    if name in architectures():
        raise ConfigError(f"NAME: got {name!r}, must be none of the registered {', '.join(architectures())}")
    if find_spec(name) is not None:
        raise ConfigError(f"NAME: got {name!r}, must not be the name of a package that is installed here")
    write(name, folder)
    print(f"{folder / name}: a model in src/{name}/model.py, and tests. Next: pip install -e {folder / name} --no-deps")


def write(name: str, folder: Path) -> None:
    """The whole package, or nothing. Raises ConfigError if something of that name is there, or if it cannot be made."""
    if (folder / name).exists():
        raise ConfigError(f"{folder / name}: exists, and is not written over")
    words = {"name": name, "class_name": "".join(word.capitalize() for word in name.split("_")) + "Model"}
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as scratch:
            package = Path(scratch) / name
            for path, template in _FILES.items():
                target = package / path.format(name=name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(Template((_TEMPLATES / f"{template}.txt").read_text()).substitute(words))
            (package / "src" / name / "__init__.py").touch()
            shutil.move(package, folder / name)
    except OSError as error:
        raise ConfigError(f"{folder / name}: cannot be written ({error.strerror})") from error
