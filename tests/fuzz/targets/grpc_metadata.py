"""Any metadata of a call: its rank key, the trace it is a part of, and a deadline of any length.

A line is a name and a value; names that end in -bin have bytes. The first byte is the method, the second the deadline.
"""

import grpc

from mfalcon.rank_key import RANK_KEY
from tests.fuzz.loop import run
from tests.fuzz.served import call
from tests.fuzz.targets.grpc_messages import METHODS, check

GRANTED_S = (None, 0.0, 1e-9, 1.0, 3_600.0, 1e9, float("inf"), -1.0)


def seeds() -> list[bytes]:
    """Headers as clients send them."""
    trace = b"traceparent:00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\ntracestate:a=b,c=d"
    return [
        b"\0\0" + trace,
        b"\0\3" + RANK_KEY.encode() + b":0123456789abcdef\nuser-agent:grpc-python",
        b"\1\4x-request-timeout-ms:100\nx-request-id:7\nauthorization:Bearer abc",
        b"\2\1grpc-trace-bin:\0\0\0\ntraceparent:00-0-0-00\ntraceparent:x",
    ]


def target(data: bytes) -> None:
    """Changes nothing of the answer, but a deadline that has passed."""
    if len(data) < 2:
        return
    method, message, answer_type = METHODS[data[0] % len(METHODS)]
    metadata: list[tuple[str, str | bytes]] = []
    for line in data[2:].split(b"\n"):
        name, _, value = line.partition(b":")
        # gRPC lets through what HTTP/2 allows: lower-case names, and values of visible ASCII unless they are binary.
        key = "".join(char for char in name.decode("latin-1").lower() if char in "abcdefghijklmnopqrstuvwxyz0-9_.-")
        text = "".join(char for char in value.decode("latin-1") if " " <= char <= "~")
        metadata.append((key, value if key.endswith("-bin") else text))
    code, details, answer = run(
        call(method, message.SerializeToString(), metadata, GRANTED_S[data[1] % len(GRANTED_S)])
    )
    if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
        check(code, details, answer, answer_type, data)
