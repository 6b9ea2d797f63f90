"""Every command of the pages is run by a test: those that are played here, in `runs.py` those that others run."""

import re
import tomllib
from itertools import chain

import pytest

from tests.documents import test_secured
from tests.documents.reading import ROOT, TYPED, Command, blocks_of, commands_of
from tests.documents.runs import RUNS, Run
from tests.documents.test_newcomer import PAGE
from tests.documents.test_played import MADE_ELSEWHERE, OFFLINE, ON_A_SERVER

PLAYED = ON_A_SERVER | OFFLINE | {test_secured.PAGE: (test_secured.SECTION,)}
ALL = tuple(chain.from_iterable(commands_of(page) for page in TYPED))


def is_played(command: Command) -> bool:
    """Whether a test of this folder runs it as it stands there."""
    if command.page == PAGE:
        return True
    played = command.section in PLAYED.get(command.page, ())
    return played and command.words[0] not in MADE_ELSEWHERE


def run_of(words: tuple[str, ...]) -> Run | None:
    """The line that says most of it."""
    return max((run for run in RUNS if run.fits(words)), key=lambda run: len(run.begins.split()), default=None)


def test_every_command_is_run_by_a_test() -> None:
    assert len(ALL) > 150
    forgotten = [str(command) for command in ALL if not is_played(command) and run_of(command.words) is None]
    assert not forgotten, "play them, or say in runs.py which test runs them"


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.begins)
def test_the_list_holds(run: Run) -> None:
    """Its test is there and says so, and it is of some page's command."""
    assert run.needle in (ROOT / run.test).read_text(encoding="utf-8")
    assert any(run_of(command.words) is run for command in ALL if not is_played(command)), "no page has such a command"


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {*project["optional-dependencies"]}
    for page in TYPED:
        text = (ROOT / page).read_text(encoding="utf-8")
        for names in re.findall(r"pip install (?:-e )?'(?:\.|mfalcon)\[([\w,]+)\]", text):
            assert set(names.split(",")) <= extras, page
    installed = [command.words for command in ALL if command.words[0] == "pip"]
    assert installed and all(words[1] == "install" for words in installed)


def test_folders_of_tests_exist() -> None:
    for command in ALL:
        if command.words[1:3] == ("-m", "pytest"):
            assert all((ROOT / word).exists() for word in command.words[3:] if not word.startswith("-"))


def test_that_what_is_played_is_there() -> None:
    """A heading that was renamed plays nothing."""
    for page, sections in PLAYED.items():
        assert {*sections} <= {block.section for block in blocks_of(page)}, page
