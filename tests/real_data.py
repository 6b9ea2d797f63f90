"""MovieLens-100K for the tests that need the real thing: fetched once into data/ml-100k of the checkout."""

import os
from pathlib import Path

import pytest

from mfalcon.errors import DataError
from mfalcon.train.dataset import Dataset
from mfalcon.train.movielens import fetch, read

DATA = Path(__file__).parents[1] / "data" / "ml-100k"


@pytest.fixture(scope="session")
def ml100k_files() -> Path:
    """The directory of the three files; skips where they are neither there nor to be had."""
    try:
        return fetch(DATA, notify=lambda notice: None)
    except DataError as error:
        if "CI" in os.environ:
            raise  # where it counts, no data is no pass
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def ml100k(ml100k_files: Path) -> Dataset:
    return read(ml100k_files)
