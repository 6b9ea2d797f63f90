"""`mfalcon load`: histories of a data set into a running server; one that was stopped half-way goes on."""

from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, calling, tls_of
from mfalcon.cli.datasets import ColumnsOption, DataOption, open_dataset
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.rank import DEFAULT_TARGET, TargetOption
from mfalcon.errors import CallFailed, ConfigError
from mfalcon.train.dataset import Dataset
from mfalcon.types import Events
from mfalcon_client import Client, ClientError, VersionConflict

_CHUNK = 5_000
"""Events per append: well within the server's limit."""


def load(
    user: Annotated[str | None, typer.Option(help="Only this user; everybody if not given.")] = None,
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    target: TargetOption = DEFAULT_TARGET,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    json_output: JsonOption = False,
) -> None:
    """Append the histories of a data set to a running server; run again, it goes on where it stopped.

    Events that the server has of a user are taken for the first ones of the data set, and only the rest is appended.
    Actions go by the names that the served model has for them; one that it does not know is refused.
    """
    dataset = open_dataset(data, columns, None, "", None, to_learn=False)
    if user is not None and user not in dataset.user_ids:
        raise ConfigError(f"--user: {user!r} is not a user of {dataset.name}")
    chosen = np.ones(len(dataset.events), dtype=np.bool_)
    if user is not None:
        chosen = dataset.user == dataset.user_ids.index(user)
    with calling(target, tls=tls_of(tls_ca, tls_cert, tls_key), token_file=token_file) as client:
        appended = append_histories(client, dataset.with_actions(client.get_model().actions), chosen)
    there = int(chosen.sum()) - appended
    if json_output:
        print_json({"appended": appended, "there": there})
        return
    Console(highlight=False).print(f"{appended:,} events appended" + (f", {there:,} were there" if there else ""))


def append_histories(client: Client, dataset: Dataset, chosen: NDArray[np.bool_], chunk: int = _CHUNK) -> int:
    """Append what the server lacks of the chosen events, bool [num_events], of each user in order; how many those are.

    Raises CallFailed, which names the user, if a call fails or the server has more events of a user than are chosen.
    """
    appended = 0
    users = np.unique(dataset.user[chosen])
    for user in track(users, description="appending", transient=True, console=Console(stderr=True)):
        positions = dataset.of_user(user)
        user_id, events = dataset.user_ids[user], dataset.events[positions[chosen[positions]]]
        try:
            appended += _append_rest(client, user_id, events, chunk)
        except ClientError as error:
            raise CallFailed(error.code, f"user {user_id!r}: {error.details}") from error
    return appended


def _append_rest(client: Client, user_id: str, events: Events, chunk: int) -> int:
    """Append the events that are not there, most often all of them. No write doubles any: each says what it expects."""
    there = 0
    try:
        done = client.append_events(user_id, events[:chunk], expected_len=0).history_len
    except VersionConflict as conflict:
        if conflict.history_len is None:
            raise
        there = done = conflict.history_len
        if there > len(events):
            told = f"the server has {there:,} events, more than the {len(events):,} to load; delete the user first"
            raise ClientError(conflict.code, told) from conflict
    while done < len(events):
        done = client.append_events(user_id, events[done : done + chunk], expected_len=done).history_len
    return done - there
