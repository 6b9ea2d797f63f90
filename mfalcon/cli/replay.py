"""`mfalcon replay`: online equals offline. The test events of a data set, in time order, through a running server; or
captured requests, see `replay_capture.py`.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, calling, tls_of
from mfalcon.cli.datasets import ColumnsOption, DataOption, ItemColumnsOption, ItemsOption, LikeOption, open_dataset
from mfalcon.cli.load import append_histories
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.rank import DEFAULT_TARGET, TargetOption
from mfalcon.cli.replay_capture import DTYPES, CaptureReplay, replay_capture, show
from mfalcon.cli.replay_ensemble import ServedMerge, read_ensemble
from mfalcon.errors import ConfigError, EngineFailure
from mfalcon.models import checkpoint
from mfalcon.models.base import Ranker
from mfalcon.replay.report import Report as CaptureReport
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import Report, evaluate, report
from mfalcon.train.merging import score_members
from mfalcon.train.sequences import Visibility
from mfalcon.train.splits import TEST, Split, split
from mfalcon.train.vocabulary import fit_to
from mfalcon.types import Floats, Ids
from mfalcon_client import Client

_SCORE_BOUND, _AUC_BOUND = 1e-5, 1e-4


@dataclass(frozen=True, slots=True)
class Replay:
    """What the server answered for every test event, against the offline evaluation."""

    visibility: Visibility
    num_rows: int
    online_auc: float
    offline_auc: float
    worst_score_error: float
    rank_calls: int
    reused_tokens: int
    encoded_tokens: int
    p50_ms: float
    p99_ms: float

    @property
    def holds(self) -> bool:
        """Scores within 1e-5 and AUC within 1e-4 (issue bounds for float32)."""
        return self.worst_score_error <= _SCORE_BOUND and abs(self.online_auc - self.offline_auc) <= _AUC_BOUND


def replay(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="The checkpoint that the server serves, or the TOML file of its one ensemble."
        ),
    ],
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    part: Annotated[Split, typer.Option("--split", help="Whose test events to replay.")] = "A",
    visibility: Annotated[Visibility, typer.Option(help="strict ranks events of one time together.")] = "strict",
    target: TargetOption = DEFAULT_TARGET,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    capture: Annotated[
        list[Path] | None,
        typer.Option(
            "--capture",
            help="Play captured requests instead, in this process and without a server: a directory of captures or one "
            "of its files; may be given several times.",
        ),
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", help="Of a capture: another checkpoint to compare with.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="Of a capture: the key file, if it is not beside the captures.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Of a capture: play the requests to this model alone.")] = "",
    most: Annotated[int, typer.Option("--limit", help="Of a capture: requests to play, 0 for all.", min=0)] = 0,
    worst: Annotated[int, typer.Option("--worst", help="Of a capture: requests to list that moved most.", min=0)] = 10,
    threads: Annotated[int, typer.Option("--threads", help="Of a capture: cores, 0 for all.", min=0)] = 0,
    device: Annotated[str, typer.Option("--device", help="Of a capture: cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", help=f"Of a capture: {', '.join(DTYPES)}.")] = "float32",
    backend: Annotated[str, typer.Option("--backend", help="Of a capture: what computes, as of serve.")] = "auto",
    kv_budget_mb: Annotated[
        int, typer.Option("--kv-budget-mb", help="Of a capture: memory for KV states, in MiB.", min=1)
    ] = 1_024,
    json_output: JsonOption = False,
) -> None:
    """Rank, then append, every test event on a fresh server; exit code 1 unless the scores equal the offline ones.

    With --capture: play captured requests, and tell what moved; exit code 1 unless what the same checkpoint answered
    comes out again.
    """
    if capture:
        wish = CaptureReplay(
            capture, path, against, keys, model, most, worst, threads, device, dtype, backend, kv_budget_mb
        )
        _print(replay_capture(wish), json_output=json_output)
        return
    if against is not None or keys is not None:
        raise ConfigError("--against, --keys: must not be given without --capture")
    merge = read_ensemble(path) if path.suffix == ".toml" else None
    members = merge.members if merge is not None else {"": checkpoint.load(path)}
    read = open_dataset(data, columns, items, item_columns, like_at_least)
    chosen = split(read, part) == TEST
    with calling(target, tls=tls_of(tls_ca, tls_cert, tls_key), token_file=token_file) as client:
        client.wait_ready(10)
        for name, member in members.items():
            served = client.get_model(name).version
            if not member.fingerprint.startswith(served):
                raise ConfigError(
                    f"{target} serves version {served}, {name or path} is {member.fingerprint[: len(served)]}"
                )
        if merge is not None:
            result = replay_merge(client, merge, read, chosen, visibility)
        else:
            loaded = members[""]
            result = replay_online(client, loaded.model, fit_to(read, loaded), chosen, visibility)
    if json_output:
        print_json(dataclasses.asdict(result) | {"holds": result.holds})
    else:
        console = Console(highlight=False)
        console.print(
            f"{result.num_rows:,} events in {result.rank_calls:,} Rank calls, {visibility}: "
            f"AUC online {result.online_auc:.5f}, offline {result.offline_auc:.5f}; "
            f"worst score error {result.worst_score_error:.1e} (bound {_SCORE_BOUND:.0e})\n"
            f"tokens reused {result.reused_tokens:,}, encoded {result.encoded_tokens:,}; "
            f"call p50 {result.p50_ms:.2f} ms, p99 {result.p99_ms:.2f} ms"
        )
    if not result.holds:
        raise typer.Exit(1)


def _print(found: CaptureReport, *, json_output: bool) -> None:
    """Of captured requests; exit code 1 as `replay` has it."""
    if json_output:
        print_json(found.told())
    else:
        show(found, Console(highlight=False))
    if not found.holds:
        raise typer.Exit(1)


def replay_online(
    client: Client, model: Ranker, dataset: Dataset, chosen: NDArray[np.bool_], visibility: Visibility
) -> Replay:
    """Replay the chosen events through a server that holds no history yet, and compare with the offline evaluation."""
    offline, index, expected = evaluate(model, dataset, chosen, visibility)
    return _replay(client, "", [model], dataset, visibility, offline, index, expected)


def replay_merge(
    client: Client, merge: ServedMerge, dataset: Dataset, chosen: NDArray[np.bool_], visibility: Visibility
) -> Replay:
    """The same of an ensemble, against the offline merge of its members. dataset: as it was read."""
    first, models = next(iter(merge.members.values())), [member.model for member in merge.members.values()]
    offline = score_members(merge.members, dataset, chosen, visibility)
    expected = merge.merge(list(offline.scores.values()), merge.weights).task_scores.T
    fitted = fit_to(dataset, first)
    quality = report(first.model, fitted, offline.index, expected, visibility)
    return _replay(client, merge.name, models, fitted, visibility, quality, offline.index, expected)


def _replay(
    client: Client,
    name: str,
    models: Sequence[Ranker],
    dataset: Dataset,
    visibility: Visibility,
    offline: Report,
    index: Ids,
    expected: Floats,
) -> Replay:
    """models: those that answer under the name, the first of which says what the tasks are. expected: [n, num_tasks] of
    the events at positions [n].
    """
    chosen = np.zeros(len(dataset.events), dtype=np.bool_)
    chosen[index] = True
    scores = np.zeros_like(expected)
    row_of = {int(position): row for row, position in enumerate(index)}
    context = _context(dataset)
    reused = encoded = 0
    latencies = []
    groups = _groups(dataset, index, visibility)
    counts, times = any(model.config.counters for model in models), dataset.events["time_ms"]
    before = _before(dataset, chosen, visibility)
    if counts:  # what everybody does moves the counters of items: all events are told, in their order
        told = _first_unseen(dataset, groups[0], visibility)
        before = np.arange(len(times)) < told
    append_histories(client, dataset, before)
    for group in track(groups, description="replaying", transient=True, console=Console(stderr=True)):
        first = int(group[0])
        user, events = dataset.user_ids[dataset.user[first]], dataset.events[group]
        if counts:
            _tell(client, dataset, np.arange(told, unseen := _first_unseen(dataset, group, visibility)))
            told = unseen
        began = time.perf_counter()
        result = client.rank(
            user,
            events["item_id"],
            request_time_ms=int(events["time_ms"][0]),
            context=context[int(dataset.user[first])],
            features={name: column for model in models for name, column in _features(model, dataset, group).items()},
            model=name,
        )
        if result.partial_merge:
            raise EngineFailure(f"{name}: a member is missing: {result.members}")
        latencies.append(time.perf_counter() - began)
        scores[[row_of[int(position)] for position in group]] = result.task_scores.T
        reused += result.cache.reused_tokens
        encoded += result.cache.encoded_tokens
        if not counts:
            shown = dataset.events[_of_one_time(dataset, first)] if visibility == "strict" else events
            client.append_events(user, shown, expected_len=result.history_len)
    online = report(models[0], dataset, index, scores, visibility)
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    worst = float(np.abs(scores - expected).max())
    return Replay(
        visibility, len(index), online.auc, offline.auc, worst, len(groups), reused, encoded, float(p50), float(p99)
    )


def _before(dataset: Dataset, chosen: NDArray[np.bool_], visibility: Visibility) -> NDArray[np.bool_]:
    """The events of every user who takes part that come before the first chosen one: strict, those of an earlier time,
    of which a split may leave some out.
    """
    before, times = np.zeros(len(dataset.events), dtype=np.bool_), dataset.events["time_ms"]
    for user in np.unique(dataset.user[chosen]):
        positions = dataset.of_user(user)
        first = int(np.argmax(chosen[positions]))
        if visibility == "strict":
            first = int(np.searchsorted(times[positions], times[positions[first]], side="left"))
        before[positions[:first]] = True
    return before


def _first_unseen(dataset: Dataset, group: Ids, visibility: Visibility) -> int:
    """Position of the first event that events of one Rank call do not see, whoever's it is."""
    first = int(group[0])
    if visibility == "order":
        return first
    times = dataset.events["time_ms"]
    return int(np.searchsorted(times, times[first], side="left"))


def _tell(client: Client, dataset: Dataset, positions: Ids) -> None:
    """Append events of many users, those of each in their order."""
    users = dataset.user[positions]
    for user in np.unique(users):
        client.append_events(dataset.user_ids[user], dataset.events[positions[users == user]])


def _of_one_time(dataset: Dataset, position: int) -> Ids:
    """Events of the same user and time as one event."""
    positions = dataset.of_user(int(dataset.user[position]))
    times = dataset.events["time_ms"]
    same: Ids = positions[times[positions] == times[position]]
    return same


def _groups(dataset: Dataset, index: Ids, visibility: Visibility) -> list[Ids]:
    """Events that one Rank call scores: by order each alone, strict all of one user and time."""
    if visibility == "order":
        return [index[i : i + 1] for i in range(len(index))]
    user, times = dataset.user[index], dataset.events["time_ms"][index]
    cuts = np.flatnonzero((np.diff(user) != 0) | (np.diff(times) != 0)) + 1
    return np.split(index, cuts)


def _context(dataset: Dataset) -> list[dict[str, int]]:
    """Context of every user, without the missing codes; derived features are left to the server."""
    return [
        {name: int(column[user]) for name, column in dataset.user_context.items() if column[user] >= 0}
        for user in range(len(dataset.user_ids))
    ]


def _features(model: Ranker, dataset: Dataset, group: Ids) -> dict[str, Floats]:
    """Of the items of some events; where one is unknown, the mean, as which the model reads it."""
    given = [feature for feature in model.config.dense_features if feature.name in dataset.dense]
    columns = {feature.name: dataset.dense[feature.name][group] for feature in given}
    return {
        feature.name: np.where(np.isnan(columns[feature.name]), np.float32(feature.center), columns[feature.name])
        for feature in given
    }
