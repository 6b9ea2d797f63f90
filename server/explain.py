"""A validation error of pydantic as our refusal: field, value and limit."""

from pydantic_core import ErrorDetails

from mfalcon.errors import InvalidInput

VERSION_PATTERN = "^[0-9a-f]{32}$"
"""Of a history's version where it is text."""
_PATTERNS = {VERSION_PATTERN: "32 hex digits (0-9, a-f)"}


def refusal(error: ErrorDetails, path: tuple[int | str, ...]) -> InvalidInput:
    """`path` says where: ("events", 3, "time_ms") is events[3].time_ms."""
    field, must = field_name(path), error["msg"].removeprefix("Input should be ")
    match error["type"]:
        case "missing":
            return InvalidInput(field, None, "given")
        case "extra_forbidden":
            return unknown_field(path, error["input"])
        case "int_parsing_size":
            must = "a valid integer"
        case "model_type" | "model_attributes_type":
            undeclared = isinstance(error["input"], bytes)
            must = f"a JSON object{' with content-type: application/json' if undeclared else ''}"
        case "value_error":
            must = str(error["ctx"]["error"])
        case "string_pattern_mismatch":
            pattern = error["ctx"]["pattern"]
            must = _PATTERNS.get(pattern, f"text that matches {pattern}")
        case "string_too_short" | "string_too_long":
            must = must.replace("String should have", "text of")
    return InvalidInput(field, brief(error["input"]), must)


def unknown_field(path: tuple[int | str, ...], value: object) -> InvalidInput:
    """A field that there is not was given."""
    return InvalidInput(field_name(path), brief(value), "absent: there is no such field")


def field_name(path: tuple[int | str, ...]) -> str:
    """The way a programmer writes it; the root of a request is its body."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in path)
    return name.removeprefix(".") or "body"


def brief(value: object) -> object:
    """Scalars as they are (a long text shortened), the kind of anything larger."""
    if isinstance(value, str):
        return value[:100]
    if value is None or isinstance(value, bool | int | float):
        return value
    for kind, name in ((dict, "an object"), (list, "a list"), (bytes, "bytes that are not declared as JSON")):
        if isinstance(value, kind):
            return name
    return type(value).__name__
