"""Every surface takes any bytes: the corpus again, and some mutations of it. `make fuzz` looks for more."""

from collections.abc import Iterator
from random import Random

import pytest

from loadtest.faults.mutate import mutate
from tests.fuzz import loop
from tests.fuzz.surfaces import CORPUS, NAMES, surface

NUM_MUTATIONS = {
    "checkpoint": 15,
    "delta_files": 150,
    "file_log": 40,
    "tables": 40,
    "config": 40,
    "http_wire": 200,
    "http_bodies": 250,
}
"""Of those that take a millisecond and more."""
OF_OTHERS = 400


@pytest.fixture(scope="module", autouse=True)
def one_loop() -> Iterator[None]:
    yield
    loop.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_surface_lets_only_documented_errors_out(name: str) -> None:
    fuzzed, rng = surface(name), Random(name)
    corpus = fuzzed.corpus()
    for data in (b"", *corpus):
        fuzzed.target(data)
    for _ in range(NUM_MUTATIONS.get(name, OF_OTHERS)):
        data = mutate(corpus, rng)
        try:
            fuzzed.target(data)
        except BaseException as error:
            error.add_note(f"with {data!r}")
            raise


def test_the_corpus_is_small_and_of_surfaces_that_there_are() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    assert {path.parent.name for path in files} <= set(NAMES)
