"""A random key for every captured user. Whoever is deleted loses his, and what was captured of him is unreadable from
then on, in files that are kept and in copies of them.

One file of slots of 80 bytes, written and overwritten in place: user hash, key id, key, the generation of the user's
log, 8 zeros. A free slot is all zeros.
"""

import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mfalcon.capture.frames import KEY_ID_BYTES
from mfalcon.errors import ConfigError, DataError

NAME: Final = "keys"
KEY_BYTES: Final = 32
_SLOT: Final = struct.Struct("<16s16s32s8s8x")
_SLOT_BYTES: Final = _SLOT.size
_NO_GENERATION: Final = bytes(8)
_HEAD: Final = b"MFALCKEY\x01".ljust(_SLOT_BYTES, b"\0")
_FREE: Final = bytes(_SLOT_BYTES)


@dataclass(frozen=True, slots=True)
class UserKey:
    """id: by which frames name it. cipher: AES-256-GCM. generation: of the user's log, empty while he had none."""

    id: bytes
    cipher: AESGCM
    slot: int
    secret: bytes = field(repr=False)
    generation: bytes = b""


def read_keys(path: Path) -> Mapping[bytes, AESGCM]:
    """The ciphers of a key file by key id. Raises DataError for what is none."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return {key.id: key.cipher for _, key in _slots(content, str(path))}


def _slots(content: bytes, name: str) -> Iterator[tuple[bytes, UserKey]]:
    """User hash and key of each slot that is taken. Raises DataError."""
    if content[:_SLOT_BYTES] != _HEAD:
        raise DataError(f"{name}: it is no file of capture keys")
    for slot in range(1, len(content) // _SLOT_BYTES):
        user, key_id, secret, generation = _SLOT.unpack_from(content, slot * _SLOT_BYTES)
        if key_id != bytes(KEY_ID_BYTES):
            generation = b"" if generation == _NO_GENERATION else generation
            yield user, UserKey(key_id, AESGCM(secret), slot, secret, generation)


@dataclass(slots=True)
class _Free:
    """slots: that may be taken. num: slots that the file has, its head included."""

    slots: list[int] = field(default_factory=list)
    num: int = 1


class Keys:
    """The key file of one server. Belongs to one thread."""

    def __init__(self, directory: Path) -> None:
        """Makes the file if there is none. Raises ConfigError where it cannot be used."""
        path = directory / NAME
        self._keys: dict[bytes, UserKey] = {}
        self._free = _Free()
        try:
            self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            content = path.read_bytes()
            if not content:
                os.pwrite(self._file, _HEAD, 0)
                os.fsync(self._file)
                content = _HEAD
        except OSError as error:
            raise ConfigError(f"capture_dir: {path} cannot be used: {error.strerror}") from error
        try:
            self._keys.update(_slots(content, str(path)))
        except DataError as error:
            os.close(self._file)
            raise ConfigError(f"capture_dir: {error}") from error
        taken = {key.slot for key in self._keys.values()}
        self._free.num = len(content) // _SLOT_BYTES
        self._free.slots = [slot for slot in range(1, self._free.num) if slot not in taken]

    def __len__(self) -> int:
        """Users who have one."""
        return len(self._keys)

    @property
    def users(self) -> set[bytes]:
        """Hashes of those who have one."""
        return set(self._keys)

    def generation_of(self, user: bytes) -> bytes | None:
        """Of the log that a user had when his key was used last; empty without one, None if he has no key. Any thread
        may ask.
        """
        known = self._keys.get(user)
        return None if known is None else known.generation

    def of(self, user: bytes, generation: bytes = b"") -> UserKey:
        """The user's key, a new one if he has none, or if that which he has is of another life of his log. generation:
        of his log now, empty where he has none. Raises OSError where the disk does not take it.
        """
        known = self._keys.get(user)
        if known is not None and generation and known.generation != generation:
            if known.generation:
                self.delete([user])
                known = None
            else:
                known = replace(known, generation=generation)
                self._put(user, known)
        if known is not None:
            return known
        secret, key_id = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_ID_BYTES)
        slot = self._free.slots[-1] if self._free.slots else self._free.num
        made = UserKey(key_id, AESGCM(secret), slot, secret, generation)
        self._put(user, made)
        if self._free.slots:
            self._free.slots.pop()
        else:
            self._free.num += 1
        return made

    def _put(self, user: bytes, key: UserKey) -> None:
        _write(self._file, _SLOT.pack(user, key.id, key.secret, key.generation), key.slot)
        self._keys[user] = key

    def delete(self, users: Iterable[bytes]) -> int:
        """Overwrite keys, and return once the disk has that; how many there were. Raises OSError, and then they may be
        there still: ask again.
        """
        deleted = [(user, self._keys[user]) for user in users if user in self._keys]
        for _, key in deleted:
            _write(self._file, _FREE, key.slot)
        if deleted:
            os.fdatasync(self._file)
        for user, key in deleted:
            del self._keys[user]
            self._free.slots.append(key.slot)
        return len(deleted)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _write(file: int, slot: bytes, number: int) -> None:
    at = number * _SLOT_BYTES
    if os.pwrite(file, slot, at) != len(slot):
        raise OSError(f"the key file took a part of slot {number}")
