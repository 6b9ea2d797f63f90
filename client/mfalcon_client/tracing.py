"""The caller's trace travels with its calls where opentelemetry-api is installed; nothing is done where it is not."""

import sys
from collections.abc import Iterable


def trace_headers() -> Iterable[tuple[str, str]]:
    """traceparent, and what else the program's propagators write.

    Only a program that has imported the API has a trace: so this import costs nobody anything who has none.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.propagate import inject  # noqa: PLC0415

    headers: dict[str, str] = {}
    inject(headers)
    return ((key.lower(), value) for key, value in headers.items())
