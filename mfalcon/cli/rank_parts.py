"""`mfalcon rank --stream`: scores as they come, a line for each part."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from mfalcon.cli.output import print_json
from mfalcon.models.items import ItemTable
from mfalcon.types import Ids
from mfalcon_client import Client, Part, Rank, Ranking

_console = Console(highlight=False)


def streamed(
    client: Client, asked: Rank, ids: Ids, names: Sequence[int | str], items: ItemTable | None, *, as_json: bool
) -> Ranking:
    """The whole answer, once its parts are printed. ids, names: of the candidates. Raises ClientError behind the parts
    that are right.
    """
    began = time.perf_counter()
    with client.rank_stream(asked) as parts:
        for part in parts:
            if as_json:
                print_json(part_json(part))
            else:
                took_ms = 1000 * (time.perf_counter() - began)
                _console.print(Text(part_line(part, took_ms, ids, names, items)), soft_wrap=True)
        return parts.ranking


def part_json(part: Part) -> dict[str, object]:
    """All of a part. unknown, failed: positions among all candidates, as `first` is."""
    return {
        "first": part.first,
        "scores": part.scores.tolist(),
        "tasks": dict(zip(part.tasks, part.task_scores.tolist(), strict=True)),
        "unknown": part.unknown,
        "failed": part.failed,
        "model_version": part.model_version,
    }


def part_line(part: Part, took_ms: float, ids: Ids, names: Sequence[int | str], items: ItemTable | None) -> str:
    """Which candidates it is of, when it came, and the best of them."""
    best = int(part.scores.argmax())
    position = part.first + best
    told = [str(names[position]), f"{part.scores[best]:.4f}"]
    if position in part.unknown:
        told.append("(unknown item)")
    elif items is not None:
        told.append(items.title(int(ids[position])))
    through = part.first + len(part.scores)
    return f"candidates {part.first + 1} to {through} of {len(ids)} after {took_ms:.1f} ms; best: {', '.join(told)}"
