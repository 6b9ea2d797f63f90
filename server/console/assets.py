"""The files of the pages, read once: what a browser is sent, and what it may do with it."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Final

DIRECTORY: Final = Path(__file__).parent
MEDIA_TYPES: Final[Mapping[str, str]] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Where the browser knows this, no text can become markup, whatever our scripts do.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Nothing but our own files, no script within a page, no other host, no frame around it."""
HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), geolocation=(), microphone=()",
    }
)
"""Of every answer that a browser may show."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A file. packed: the same in gzip. etag: by which a browser knows that its copy is this one."""

    body: bytes
    packed: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> "Asset":
        """From the disk."""
        body = path.read_bytes()
        packed = gzip.compress(body, 9, mtime=0)
        return cls(body, packed, MEDIA_TYPES[path.suffix], f'"{sha256(body).hexdigest()[:32]}"')


def read_assets(directory: Path = DIRECTORY) -> Mapping[str, Asset]:
    """All files of the pages, by name."""
    paths = sorted(path for path in directory.iterdir() if path.suffix in MEDIA_TYPES)
    return MappingProxyType({path.name: Asset.read(path) for path in paths})
