"""Any bytes as a chunk of a KV state in Redis: as they are, or as the payload of a chunk with a right checksum."""

import torch

from mfalcon.kvcache.chunk import ChunkHeader, ChunkLayout, ChunkRejected, PayloadDtype, is_finite, pack, unpack
from mfalcon.kvcache.codec import decode
from mfalcon.kvcache.state import KVPool, KVShape, PlainLayout

USER, LINK, SECRET = bytes(range(16)), bytes(reversed(range(16))), b"a secret of the operator"
DTYPES = (PayloadDtype.FLOAT32, PayloadDtype.BFLOAT16, PayloadDtype.INT8)
NUM_EVENTS = 3
LAYOUT = PlainLayout(KVShape(1, 2, 2, 3, torch.float32, torch.device("cpu")), page_tokens=4)


def layout_of(dtype: PayloadDtype) -> ChunkLayout:
    """Of states of one layer and two heads."""
    return ChunkLayout(b"sixteen bytes of", 2, 1, 2, 2, 3, dtype)


def seeds() -> list[bytes]:
    """Whole chunks of each dtype, with a secret and without."""
    chunks = []
    for number, dtype in enumerate(DTYPES):
        layout = layout_of(dtype)
        payload = bytes(layout.payload_bytes(NUM_EVENTS))
        header = ChunkHeader(layout, USER, LINK, 0, 0, NUM_EVENTS)
        chunks += [bytes((number,)) + pack(header, payload, None), bytes((number | 8,)) + pack(header, payload, SECRET)]
        chunks.append(bytes((number | 16,)) + payload)
    return chunks


def target(data: bytes) -> None:
    """ChunkRejected, or a payload of the size that the header says, whose numbers are finite once decoded."""
    if not data:
        return
    kind, value = data[0], data[1:]
    dtype = DTYPES[(kind & 7) % len(DTYPES)]
    layout, secret = layout_of(dtype), SECRET if kind & 8 else None
    if kind & 16:
        size = layout.payload_bytes(NUM_EVENTS)
        value = pack(ChunkHeader(layout, USER, LINK, 0, 0, NUM_EVENTS), value[:size].ljust(size, b"\0"), secret)
    try:
        header, payload = unpack(value, layout, USER, secret)
    except ChunkRejected:
        return
    num_events = header.stop - header.first
    assert len(payload) == layout.payload_bytes(num_events)
    if is_finite(payload, layout):
        pool = KVPool(LAYOUT)
        with torch.inference_mode():
            state = decode([(payload, 2 * num_events)], pool, dtype)
            assert all(bool(part.isfinite().all()) for part in state.read(0, 0, state.num_tokens))
