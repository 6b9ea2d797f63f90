"""HTTP/1.1 as callers write it, parsed by h11 a little at a time and held to what this server accepts."""

from collections import deque
from urllib.parse import urlsplit

import h11

MAX_HEAD_BYTES = 16 * 2**10
"""Of an unfinished head, of the line before a chunk, of what follows the last chunk; a setting may say otherwise."""
MAX_HEADERS = 100
"""Of a request: a browser behind three proxies sends thirty."""
BYTES_AT_ONCE = 4 * 2**10
FREE_CHUNKS = 500
"""So many chunks may be of any size; beyond them the average is held to `MEAN_CHUNK_BYTES`."""
MEAN_CHUNK_BYTES = 512

Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]


class Wire(h11.Connection):
    """The server's side of a connection. What it raises is in `refusal` too; a HEAD request wants no body.

    h11 bounds what is unfinished, and parses whatever is finished in one go; so it is given a little at a time.
    """

    def __init__(self, max_head_bytes: int = MAX_HEAD_BYTES) -> None:
        super().__init__(h11.SERVER, max_head_bytes)
        self.refusal: h11.RemoteProtocolError | None = None
        self.wants_no_body = False
        self._received = deque[bytes]()
        self._num_chunks = 0
        self._num_body_bytes = 0

    @property
    def is_between_requests(self) -> bool:
        """Whether nothing of the next request has arrived."""
        return self.their_state is h11.IDLE and not self._received and not self.trailing_data[0]

    @property
    def has_next_request(self) -> bool:
        """Whether some of it came before the answer to the present one was complete."""
        return self.their_state is h11.DONE and bool(self._received or self.trailing_data[0])

    def receive_data(self, data: bytes) -> None:
        """Keep what was received until it is asked for, unless it is little."""
        if not self._received and len(data) <= BYTES_AT_ONCE:
            super().receive_data(data)
            return
        self._received.extend(data[start : start + BYTES_AT_ONCE] for start in range(0, len(data), BYTES_AT_ONCE))

    def next_event(self) -> Event:
        """Of h11. Raises RemoteProtocolError."""
        try:
            event = super().next_event()
            while event is h11.NEED_DATA and self._received:
                super().receive_data(self._received.popleft())
                event = super().next_event()
            if isinstance(event, h11.Request):
                event = self._accepted(event)
            elif isinstance(event, h11.Data):
                self._count(event)
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise
        return event

    def start_next_cycle(self) -> None:
        """Nothing is known of the next request."""
        super().start_next_cycle()
        self.wants_no_body = False

    def _accepted(self, request: h11.Request) -> h11.Request:
        """The request with a path for a target; a proxy's request names the whole URL."""
        self._num_chunks = self._num_body_bytes = 0
        self.wants_no_body = request.method == b"HEAD"
        if len(request.headers) > MAX_HEADERS:
            text = f"headers: got {len(request.headers)}, must be at most {MAX_HEADERS}"
            raise h11.RemoteProtocolError(text, error_status_hint=431)
        if {b"transfer-encoding", b"content-length"} <= {name for name, _ in request.headers}:
            raise h11.RemoteProtocolError("Transfer-Encoding and Content-Length cannot both be given")
        if request.target.startswith((b"http://", b"https://")):
            try:
                url = urlsplit(request.target)
            except ValueError as error:
                raise h11.RemoteProtocolError("the URL of the request is malformed") from error
            target = (url.path or b"/") + (b"?" + url.query if url.query else b"")
            return h11.Request(
                method=request.method, target=target, headers=list(request.headers), http_version=request.http_version
            )
        return request

    def _count(self, data: h11.Data) -> None:
        self._num_chunks += data.chunk_start
        self._num_body_bytes += len(data.data)
        if self._num_chunks > FREE_CHUNKS + self._num_body_bytes // MEAN_CHUNK_BYTES:
            raise h11.RemoteProtocolError(
                f"chunks: got {self._num_chunks} for {self._num_body_bytes} bytes, must be fewer and larger"
            )
