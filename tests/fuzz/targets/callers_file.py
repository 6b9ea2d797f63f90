"""Any bytes as the file that says who may do what."""

import time

from mfalcon.errors import ConfigError
from server.access.callers_file import parse_callers

_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def seeds() -> list[bytes]:
    """Callers with tokens, with certificates, with both."""
    token = f'[[callers.tokens]]\nsha256 = "{_HASH}"\nexpires = 2099-06-30T00:00:00Z\n'
    certificate = '[[callers.certificates]]\nuri = "spiffe://example.org/web"\n'
    caller = '[[callers]]\nname = "web"\nrights = ["rank", "append"]\n'
    other = '[[callers]]\nname = "ops"\nrights = ["admin"]\n'
    return [text.encode() for text in (caller + token, caller + certificate + other + token, caller, "callers = []")]


def target(data: bytes) -> None:
    """Callers, or a ConfigError that repeats no hash of a token: it is written to logs."""
    try:
        parse_callers(data, time.time())
    except ConfigError as error:
        assert f"got '{_HASH}" not in str(error), str(error)
