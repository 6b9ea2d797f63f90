"""What no answer may say: paths, tracebacks, and names of classes and modules, of ours as of others."""

import re

_MODULES = "mfalcon|server|numpy|pydantic|starlette|fastapi|uvicorn|msgspec|torch|redis|asyncio|google"
_INTERNALS = re.compile(
    r"Traceback|, line \d+, in |\.py\b|site-packages|/(?:tmp|home|work|usr|root|var)/"
    rf"|\b(?:{_MODULES})\.(?!v1\b)[a-z_]+"
    r"|pydantic|orjson|h11|polars|<class|<function|object at 0x|\b[A-Z][a-z]+[A-Za-z]*(?:Error|Exception)\b"
    r"|NoneType|ndarray|dtype|validation error|got b'|bytearray"
)


def internals(text: str, given: bytes = b"") -> str:
    """The first of these in the text of an answer, empty if there is none. given: what the caller sent, whose own words
    come back to nobody but the caller.
    """
    for found in _INTERNALS.finditer(text):
        if found.group().encode() not in given:
            return found.group()
    return ""
