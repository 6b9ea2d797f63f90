"""Two lists of the demo side by side: by score and made diverse, of one model and of two merged."""

from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mfalcon.models.items import ItemTable
from mfalcon.rerank.likeness import Likeness
from mfalcon.train.diversity import unlikeness
from mfalcon_client import Ranking

_WIDTH = 34
"""Of a title: two of them fit 80 columns."""


def titles(result: Ranking, items: ItemTable) -> list[str]:
    """Of the top, when all items of the table are the candidates."""
    return [items.title(int(items.item_id[position])) for position in result.top]


def titles_table(columns: Mapping[str, Sequence[str]]) -> Table:
    """Lists of titles side by side, best first."""
    table = Table()
    table.add_column("#", justify="right", min_width=2)
    for name in columns:
        table.add_column(Text(name), no_wrap=True, overflow="ellipsis", max_width=_WIDTH)
    for place, row in enumerate(zip(*columns.values(), strict=True), start=1):
        table.add_row(str(place), *(Text(title) for title in row))
    return table


def show_diverse(console: Console, by_score: Ranking, diverse: Ranking, wish: str, items: ItemTable) -> None:
    """Both lists, and how unlike their items are by their genres. wish: how the second was asked for, in words."""
    console.print(titles_table({"by score": titles(by_score, items), wish: titles(diverse, items)}))
    likeness = Likeness(items)
    unlike = [unlikeness(likeness, result.top.astype(np.int64) + 1) for result in (by_score, diverse)]
    same = "every score is the same" if np.array_equal(by_score.scores, diverse.scores) else "SCORES DIFFER"
    console.print(
        f"{_num_new(by_score, diverse)} of {len(diverse.top)} are new; genres of two titles differ by {unlike[1]:.2f} "
        f"on average, by score {unlike[0]:.2f} (1 less their cosine); {same}"
    )


def show_merged(console: Console, one: Ranking, merged: Ranking, worst: float, items: ItemTable) -> None:
    """Both lists, who was merged, and `worst`: how far the merge is from that of the members' own answers."""
    console.print(titles_table({"one model": titles(one, items), "merged": titles(merged, items)}))
    members = ", ".join(
        f"{member.model} (weight {member.weight:.2f}, {member.took_us / 1000:.1f} ms)"
        if member.arrived
        else f"{member.model} did not arrive: {member.error}"
        for member in merged.members
    )
    console.print(f"{_num_new(one, merged)} of {len(merged.top)} are new; of {members}", soft_wrap=True, markup=False)
    console.print(f"max |served merge - merge of what each answers alone|: [bold]{worst:.1e}[/bold]")


def _num_new(before: Ranking, after: Ranking) -> int:
    return len(set(after.top.tolist()) - set(before.top.tolist()))
