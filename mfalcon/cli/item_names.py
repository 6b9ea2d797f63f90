"""What items are called where people read of them."""

from collections.abc import Sequence

from mfalcon.types import Ids


def item_names(item_ids: Ids, texts: Sequence[str]) -> list[int | str]:
    """Items [n] by their text, where they have one. texts: [n], or none at all."""
    numbers = item_ids.tolist()
    return [text or item for item, text in zip(numbers, texts, strict=True)] if texts else numbers
