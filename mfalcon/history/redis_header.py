"""The 112 bytes that head a user's log in Redis: its user, its generation, its length, both links, and who signed it.

Format 1, of 80 bytes, lacks the clock and the signature; such a log is read, and its next append writes it anew.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mfalcon.history.chain import LINK_BYTES
from mfalcon.history.history import History

_FACTS = struct.Struct("<4sHHQQ8s16s16s16sQ4s4x")
"""Magic, format, flags, base, length, generation, link at the base, link at the end, user, clock, key."""
_FIRST_FORMAT = struct.Struct("<4sHxxQQ8s16s16s16s")
_MAC_BYTES = 16
HEADER_BYTES = _FACTS.size + _MAC_BYTES
_MAGIC, _FORMAT = b"MFLG", 2
_ENDED = 1
_NO_KEY = bytes(4)
_NO_MAC = bytes(_MAC_BYTES)
_NO_LIFE = bytes(8)
_LONGEST = 2**53
"""Events of a life: the scripts count in doubles, and nobody acts as often."""
_LATEST_CLOCK = 2**63 - 1
"""No server writes a later one, and behind it there is room for those of deletions."""
AS_KNOWN = -1
"""What a script says in place of the first event that it sends, if the header is the one that its caller knows."""
assert HEADER_BYTES == 112 and _FIRST_FORMAT.size == 80

Reason = Literal[
    "type",  # the key holds no string
    "size",  # larger than any log that is kept, and no log
    "header",  # it begins with no header
    "user",  # another user's
    "truncated",  # fewer bytes than its header says
    "hash",  # its events do not hash to its own link
    "mac",  # signed by somebody who does not know the secret
    "unsigned",  # not signed, where every log must be
    "format",  # of a later version
    "secret",  # signed with a secret that is not this server's
]
"""Why a key's value is not used as the log of its user."""

OF_OTHER_SERVERS: frozenset[Reason] = frozenset({"format", "secret"})
"""What a server of another version or with other settings wrote: no damage, so it is never moved away."""


class Unfit(Exception):
    """What a key holds is not the log of its user."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a user's log as it is in Redis. generation: 8 random bytes, one life of the log. clock: milliseconds
    since 1970 of its last write, or one more than at the write before, whichever is more: it grows with every write,
    across lives too. ended: for the tombstone of a deleted log, the generation that ended, empty if that is not known;
    None for a log.
    """

    raw: bytes
    base: int = 0
    length: int = 0
    generation: bytes = b""
    base_link: bytes = b""
    link: bytes = b""
    user: bytes = b""
    clock: int = 0
    ended: bytes | None = None

    def fits(self, history: History) -> bool:
        """Whether it is the header of this history."""
        return (
            (self.generation, self.base, self.length, self.user)
            == (history.generation, history.base, len(history), history.user)
            and self.base_link == history.links[:LINK_BYTES]
            and self.link == history.link(len(history))
        )

    @property
    def is_first_format(self) -> bool:
        """Whether the events begin elsewhere than behind a header of today."""
        return len(self.raw) == _FIRST_FORMAT.size


NO_HEADER = Header(b"")


class Headers:
    """Reads and writes headers.

    secret: signs them, and a header that another secret signed is refused; None signs nothing, and refuses what is
    signed. former: secrets whose signatures are taken too. must_be_signed: refuse what is not signed.
    """

    def __init__(
        self, secret: bytes | None = None, former: Sequence[bytes] = (), *, must_be_signed: bool = False
    ) -> None:
        self._secret = secret
        self._key = _NO_KEY if secret is None else _key_of(secret)
        self._secrets = {_key_of(each): each for each in (*former, *(() if secret is None else (secret,)))}
        self._must_be_signed = must_be_signed

    def read(self, raw: bytes, user: bytes) -> Header:
        """The header of a user's log. Raises Unfit."""
        if raw[:4] != _MAGIC or len(raw) < 6:
            raise Unfit("header")
        version = int.from_bytes(raw[4:6], "little")
        if version > _FORMAT:
            raise Unfit("format")
        if version == 1 and len(raw) == _FIRST_FORMAT.size:
            header = Header(raw, *_FIRST_FORMAT.unpack(raw)[2:])
            key = _NO_KEY
        elif version == _FORMAT and len(raw) == HEADER_BYTES:
            _, _, flags, *facts, key = _FACTS.unpack(raw[: _FACTS.size])
            header = Header(raw, *facts)
            if flags & _ENDED:
                header = Header(raw, user=header.user, clock=header.clock, ended=ended_in(raw))
            elif flags:
                raise Unfit("format")
        else:
            raise Unfit("header")
        if header.user != user:
            raise Unfit("user")
        self._check_signature(raw, key)
        if header.clock > _LATEST_CLOCK:
            raise Unfit("header")
        if (
            header.base > header.length
            or header.length > _LONGEST
            or (header.base == 0 and header.ended is None and header.base_link != user)
        ):
            raise Unfit("header")
        return header

    def write(self, history: History, clock: int) -> Header:
        """The header of a history that has a generation."""
        assert history.generation
        links = (history.links[:LINK_BYTES], history.link(len(history)))
        facts = (history.base, len(history), history.generation, *links, history.user, clock)
        return Header(self._pack(0, *facts), *facts)

    def tombstone(self, user: bytes, ended: bytes, clock: int) -> bytes:
        """What stands for a while where a log was. It is of no generation, so nothing of a former life fits it."""
        return self._pack(_ENDED, 0, 0, _NO_LIFE, (ended or _NO_LIFE).ljust(LINK_BYTES, b"\0"), user, user, clock)

    def _pack(self, flags: int, *facts: int | bytes) -> bytes:
        raw = _FACTS.pack(_MAGIC, _FORMAT, flags, *facts, self._key)
        return raw + (_NO_MAC if self._secret is None else _mac(self._secret, raw))

    def _check_signature(self, raw: bytes, key: bytes) -> None:
        if key == _NO_KEY:
            if self._must_be_signed:
                raise Unfit("unsigned")
        elif key not in self._secrets:
            raise Unfit("secret")
        elif not hmac.compare_digest(_mac(self._secrets[key], raw[: _FACTS.size]), raw[_FACTS.size :]):
            raise Unfit("mac")


def is_log(raw: bytes) -> bool:
    """Whether this begins as the log of a user does who was not deleted."""
    if len(raw) < _FIRST_FORMAT.size or raw[:4] != _MAGIC:
        return False
    version, flags = struct.unpack_from("<HH", raw, 4)
    return version == 1 or (version == _FORMAT and flags == 0 and len(raw) == HEADER_BYTES)


def generation_in(raw: bytes) -> bytes:
    """The generation that a header names, whoever wrote it and whether or not it is right."""
    return raw[24:32]


def clock_in(raw: bytes) -> int:
    """The clock that a header names, 0 in the first format, and where it can be none."""
    clock = 0 if raw[4:6] == b"\1\0" else int.from_bytes(raw[80:88], "little")
    return clock if clock <= _LATEST_CLOCK else 0


def ended_in(raw: bytes) -> bytes:
    """The generation that a tombstone says has ended, empty if it does not know."""
    ended = raw[32:40]
    return b"" if ended == _NO_LIFE else ended


def _key_of(secret: bytes) -> bytes:
    """The name of a secret, which tells nothing of it."""
    return hashlib.blake2b(secret, digest_size=len(_NO_KEY), person=b"mfalcon.logkey").digest()


def _mac(secret: bytes, facts: bytes) -> bytes:
    """HMAC-SHA256 cut to 128 bits, as of the chunks of states. The magic keeps the two apart."""
    return hmac.digest(secret, facts, "sha256")[:_MAC_BYTES]
