"""Any bytes as the header that says who calls, or as names in a client's certificate. The first byte is which."""

from functools import cache
from hashlib import sha256

from mfalcon.errors import Unauthenticated
from server.access.access import Access
from server.settings.access import AccessSettings
from tests.fuzz.files import directory

TOKEN = "mfk_web-0123456789abcdefghijklmnopqrstuvwxyz"


@cache
def access() -> Access:
    """One caller, who has a token and a certificate."""
    path = directory("credentials") / "callers.toml"
    digest = sha256(TOKEN.encode()).hexdigest()
    path.write_text(
        f'[[callers]]\nname = "web"\nrights = ["rank"]\n[[callers.tokens]]\nsha256 = "{digest}"\n'
        '[[callers.certificates]]\ndns = "web.example.org"\n'
    )
    path.chmod(0o600)
    return Access(AccessSettings(tokens_file=path))


def seeds() -> list[bytes]:
    """What is right, and nearly."""
    bearer = f"Bearer {TOKEN}".encode()
    jwt = b"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."
    return [b"\0" + bearer, b"\0" + bearer[:-1], b"\0Basic YTpi", b"\0" + jwt, b"\1dns\nweb.example.org\ncn\nweb"]


def target(data: bytes) -> None:
    """Nobody, unless it is the very token or name; and no refusal says what was sent."""
    if not data:
        return
    text = data[1:].decode("latin-1")
    parts = text.split("\n")
    names = tuple(zip(parts[::2], parts[1::2], strict=False))
    try:
        caller = access().caller(text) if data[0] % 2 == 0 else access().caller(None, names)
    except Unauthenticated as error:
        assert TOKEN[:-1] not in str(error)
        return
    assert caller.name == "web"
    assert text.partition(" ")[2].strip(" ") == TOKEN if data[0] % 2 == 0 else ("dns", "web.example.org") in names
