"""`mfalcon load`: histories of a data set into a running server, whose log starts empty."""

from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from mfalcon.cli.datasets import ColumnsOption, DataOption, open_dataset
from mfalcon.cli.rank import DEFAULT_TARGET, TargetOption
from mfalcon.client import Client
from mfalcon.errors import ConfigError
from mfalcon.train.dataset import Dataset

_CHUNK = 5_000
"""Events per append: well within the server's limit."""


def load(
    user: Annotated[str | None, typer.Option(help="Only this user; everybody if not given.")] = None,
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    target: TargetOption = DEFAULT_TARGET,
) -> None:
    """Append the histories of a data set to a running server that has none of these users yet."""
    dataset = open_dataset(data, columns, None, "", None)
    if user is not None and user not in dataset.user_ids:
        raise ConfigError(f"--user: {user!r} is not a user of {dataset.name}")
    chosen = np.ones(len(dataset.events), dtype=np.bool_)
    if user is not None:
        chosen = dataset.user == dataset.user_ids.index(user)
    with Client(target) as client:
        append_histories(client, dataset, chosen)
    Console(highlight=False).print(f"{int(chosen.sum()):,} events appended")


def append_histories(client: Client, dataset: Dataset, chosen: NDArray[np.bool_]) -> None:
    """Append the chosen events, bool [num_events], of each user in order. Raises CallFailed if a user has events."""
    users = np.unique(dataset.user[chosen])
    for user in track(users, description="appending", transient=True, console=Console(stderr=True)):
        positions = dataset.of_user(user)
        positions = positions[chosen[positions]]
        for start in range(0, len(positions), _CHUNK):
            part = dataset.events[positions[start : start + _CHUNK]]
            client.append_events(dataset.user_ids[user], part, expected_len=start)
