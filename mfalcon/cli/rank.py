"""`mfalcon rank`: ask a running server, and print what it answers in words."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, calling, tls_of
from mfalcon.cli.item_names import item_names
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.rank_parts import streamed
from mfalcon.errors import ConfigError
from mfalcon.item_ids import checked_item_id
from mfalcon.models.items import ItemTable
from mfalcon.models.manifest import load_items, read_manifest
from mfalcon.types import Ids
from mfalcon_client import Rank, Ranking, Rerank, Retrieve

_console = Console(highlight=False)

TargetOption = Annotated[str, typer.Option(help="gRPC address of the server.", metavar="HOST:PORT")]
_STRENGTH = 0.2
DEFAULT_TARGET = "127.0.0.1:50051"


def rank(
    user: Annotated[str, typer.Option(help="User id.")],
    candidates: Annotated[
        str, typer.Option(help="Item ids, comma-separated; 'all' for every item of --checkpoint.")
    ] = "all",
    path: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="The served checkpoint: titles, and 'all' items.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many to print.", min=1)] = 10,
    retrieve: Annotated[
        str | None,
        typer.Option(help="Instead of candidates: conditions, comma-separated, of a served large user model."),
    ] = None,
    k: Annotated[int, typer.Option(help="Of --retrieve: most candidates.", min=1)] = 200,
    context: Annotated[
        list[str] | None,
        typer.Option(help="A context feature, name=code, as GET /v1/model numbers its values from 0; repeatable."),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(help="A number of each candidate, name=number,number,… in their order; repeatable."),
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the model or ensemble; the default one if not given.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", min=0.001)] = 10.0,
    allow_partial: Annotated[
        bool,
        typer.Option("--allow-partial", help="Where the timeout is too short, score the first candidates that fit."),
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Use no KV state and change none: the same scores, without the cache.")
    ] = False,
    exclude_unknown: Annotated[
        bool, typer.Option("--exclude-unknown", help="Keep items that the model does not know out of the top.")
    ] = False,
    exclude_seen: Annotated[
        bool, typer.Option("--exclude-seen", help="Keep items of the user's history out of the top.")
    ] = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", help="Print scores as they come, a line for each part; with --json each line is an object."
        ),
    ] = False,
    rerank: Annotated[
        str | None,
        typer.Option(help="Make the top diverse: mmr, dpp, msd or llm. Scores stay; docs/rerank.md says more."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Of --rerank, 0 (by score) to 1 (diversity alone); llm has none.", min=0, max=1, show_default="0.2"
        ),
    ] = None,
    depth: Annotated[int, typer.Option(help="Of --rerank: candidates that may move; 0 for the server's default.")] = 0,
    tail_weight: Annotated[
        float, typer.Option(help="Of --rerank: how much seldom seen items are lifted, 0 to 1 (as much as the scores).")
    ] = 0.0,
    target: TargetOption = DEFAULT_TARGET,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    json_output: JsonOption = False,
) -> None:
    """Rank candidates for a user on a running server."""
    items = load_items(path) if path else None
    ids = _candidates(candidates, items) if retrieve is None else np.empty(0, dtype=np.int64)
    asked = Rank(
        user,
        ids,
        top_k=top,
        context=_context(context or []),
        features=_features(feature or []),
        model=model,
        allow_partial=allow_partial,
        recompute=recompute,
        exclude_unknown=exclude_unknown,
        exclude_seen=exclude_seen,
        rerank=None if rerank is None else _rerank(rerank, strength, depth, tail_weight),
        retrieve=None if retrieve is None else Retrieve(retrieve.split(","), k),
    )
    names = item_names(ids, _texts(candidates, ids, items) if retrieve is None else ())
    with calling(target, timeout, tls_of(tls_ca, tls_cert, tls_key), token_file) as client:
        if stream:
            result = streamed(client, asked, ids, names, items, as_json=json_output)
        else:
            result = client.rank(**{field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)})
    if retrieve is not None:
        ids, names = result.candidates, item_names(result.candidates, result.candidate_texts)
    if path is not None and (warning := another_checkpoint(result, read_manifest(path).fingerprint)):
        typer.echo(f"{path}: {warning}", err=True)
    if json_output:
        print_json({"user": user} | as_json(result, ids, items, names))
        return
    _console.print(top_table(result, ids, items, names))
    if result.num_scored < len(ids):
        _console.print(f"scored the first {result.num_scored} of {len(ids)} candidates: there was no time for more")
    if len(result.failed):
        _console.print(
            f"the model gives {len(result.failed)} candidates a score that is no finite number: they are last"
        )
    if result.rerank_skipped:
        _console.print(f"in the order of the scores: the reranking was skipped ({result.rerank_skipped})")
    if result.members:
        _console.print(members_table(result))
    _console.print(cost_line(result))


def another_checkpoint(result: Ranking, fingerprint: str) -> str:
    """A warning where a checkpoint whose titles are shown did not make the answer, nor a part of it; else ""."""
    versions = [result.model_version, *(member.version for member in result.members)]
    if any(version and fingerprint.startswith(version) for version in versions):
        return ""
    return f"version {fingerprint[:12]}, but version {result.model_version} answered: items and titles may be others"


def members_table(result: Ranking) -> Table:
    """What each member of an ensemble gave to the answer."""
    table = Table(title="part of the merge is missing" if result.partial_merge else "merged", title_justify="left")
    for name in ("member", "weight", "version", "ms", "cache", "why not"):
        table.add_column(name, justify="right" if name in ("weight", "ms") else "left", overflow="fold")
    for member in result.members:
        where = f"{member.model} at {member.address}" if member.address else member.model
        why = member.error or (f"{len(member.failed)} candidates without a score" if len(member.failed) else "")
        cache = member.cache.source.name if member.arrived else ""
        took = f"{member.took_us / 1000:.1f}"
        table.add_row(Text(where), f"{member.weight:g}", member.version, took, cache, Text(why))
    return table


def _rerank(method: str, strength: float | None, depth: int, tail_weight: float) -> Rerank:
    if strength is None:
        strength = 0.0 if method == "llm" else _STRENGTH
    return Rerank(method, strength, depth, tail_weight)


def top_table(result: Ranking, ids: Ids, items: ItemTable | None, names: Sequence[int | str] = ()) -> Table:
    """The best candidates with titles and scores. names: what candidates are called, by their number if not given."""
    table = Table()
    for name in ("#", "item", "score", *result.tasks):
        table.add_column(Text(name), justify="right")
    unknown = set(result.unknown.tolist())
    table.add_column("title")
    for place, position in enumerate(result.top, start=1):
        item = int(ids[position])
        scores = (f"{value:.4f}" for value in (result.scores[position], *result.task_scores[:, position]))
        title = "(unknown item)" if position in unknown else items.title(item) if items else ""
        table.add_row(str(place), Text(str(names[position] if names else item)), *scores, Text(title))
    return table


def cost_line(result: Ranking) -> str:
    """Where the answer came from and what it cost."""
    cache, times = result.cache, result.timings
    return (
        f"history {result.history_len} events; cache {cache.source.name}: "
        f"{cache.reused_tokens} tokens reused, {cache.encoded_tokens} encoded; "
        f"encode {times.encode_us / 1000:.2f} ms, score {times.score_us / 1000:.2f} ms, "
        f"in all {times.total_us / 1000:.2f} ms"
    )


def _candidates(text: str, items: ItemTable | None) -> Ids:
    if text == "all":
        if items is None:
            raise ConfigError("--candidates all needs --checkpoint, whose items they are")
        return items.item_id
    try:
        return np.array([checked_item_id(part) for part in text.split(",")], dtype=np.int64)
    except ValueError as error:
        raise ConfigError(
            f"--candidates: got {text[:200]!r}, must be item ids separated by commas, {error} each"
        ) from error


def _texts(text: str, ids: Ids, items: ItemTable | None) -> Sequence[str]:
    """Of the candidates of `_candidates`, "" of numbers."""
    if text == "all":
        return items.texts_of(ids) if items is not None else ()
    return ["" if part == str(number) else part for part, number in zip(text.split(","), ids.tolist(), strict=True)]


def _context(pairs: list[str]) -> dict[str, int]:
    try:
        return {name: int(code) for name, _, code in (pair.partition("=") for pair in pairs)}
    except ValueError as error:
        raise ConfigError(f"--context: got {pairs}, each must be name=integer") from error


def _features(pairs: list[str]) -> dict[str, list[float]]:
    try:
        parts = [pair.partition("=") for pair in pairs]
        return {name: [float(number) for number in numbers.split(",")] for name, _, numbers in parts}
    except ValueError as error:
        raise ConfigError(f"--feature: got {pairs}, each must be name=number,number,…") from error


def as_json(result: Ranking, ids: Ids, items: ItemTable | None, names: Sequence[int | str] = ()) -> dict[str, object]:
    """The best candidates and everything else that the server said of the request. names: as of `top_table`."""
    unknown = set(result.unknown.tolist())
    top = [
        {
            "item_id": names[position] if names else int(ids[position]),
            "title": items.title(int(ids[position])) if items else "",
            "score": float(result.scores[position]),
            "tasks": dict(zip(result.tasks, result.task_scores[:, position].tolist(), strict=True)),
            "unknown": position in unknown,
        }
        for position in result.top.tolist()
    ]
    cache = dataclasses.asdict(result.cache) | {"source": result.cache.source.name}
    return {
        "top": top,
        "model_version": result.model_version,
        "history_len": result.history_len,
        "num_scored": result.num_scored,
        "num_unknown": len(unknown),
        "num_failed": len(result.failed),
        "rerank_skipped": result.rerank_skipped,
        "cache": cache,
        "timings": dataclasses.asdict(result.timings),
        "partial_merge": result.partial_merge,
        "members": [
            {
                "model": member.model,
                "address": member.address,
                "weight": member.weight,
                "version": member.version,
                "arrived": member.arrived,
                "num_failed": len(member.failed),
                "error": member.error,
                "took_us": member.took_us,
            }
            for member in result.members
        ],
    }
