"""How a user appears in logs, traces and captures: under a keyed hash of the id, so that lines of one user can be
followed and nobody who reads them, without the key, learns or can confirm who that is.

The key belongs to the process as its log does. Without one from a file it is random and ends with the server: what is
written down needs no secret to be kept, and cannot be joined with what another server, or the next one, writes.
"""

import hashlib
import os
from typing import Final

TAG_BYTES: Final = 10
"""80 bits: of a billion users two share a tag with a probability of one in two million."""
_KEY_BYTES: Final = 32


class Pseudonyms:
    """The names of users under one key, of at most 64 bytes. is_plain: they are the ids themselves."""

    def __init__(self, key: bytes | None = None, *, is_plain: bool = False) -> None:
        self.key = key or os.urandom(_KEY_BYTES)
        self.is_plain = is_plain

    def use(self, key: bytes | None, *, is_plain: bool = False) -> None:
        """Name users by this key from now on, of any length; None keeps the present one."""
        if key is not None:
            self.key = hashlib.blake2b(key).digest()  # its own key has 64 bytes at most
        self.is_plain = is_plain

    def tag(self, user_id: str) -> str:
        """The name of a user: 20 hex digits, or the id where ids are plain."""
        if self.is_plain:
            return user_id
        raw = user_id.encode(errors="surrogatepass")
        return hashlib.blake2b(raw, digest_size=TAG_BYTES, key=self.key, person=b"mfalcon.user").hexdigest()


OURS: Final = Pseudonyms()
"""Those of this process."""


def user_tag(user_id: str) -> str:
    """The name under which a user appears in what this process writes down."""
    return OURS.tag(user_id)
