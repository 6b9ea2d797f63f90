"""Results as JSON takes them."""

from typing import Any


def finite(value: Any) -> Any:
    """Numbers that JSON has not, as text."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value
