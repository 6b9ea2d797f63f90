"""What front-ends and the engine's process say to each other: one MessagePack message each, with numbers as bytes.

Both ends are of one version and on one machine: byte order is the machine's, and a deadline is a reading of
`time.monotonic()`, whose clock on Linux is one for all processes. Nothing is pickled. An error travels as the name of
its class in mfalcon/errors.py, its text and its attributes, and is raised as the very same on the other side.
"""

from typing import Final

import msgspec

from server.frontends.answers import Answer
from server.frontends.questions import Question

SERVING: Final = "serving"
BEAT_SECONDS: Final = 1.0
"""Time after which either side says that it lives."""

encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
