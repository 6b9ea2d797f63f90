"""`mfalcon reload` against something that is no Admin port."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from mfalcon.cli.reload import reload
from mfalcon.errors import CallFailed


def test_a_port_that_does_not_reload_is_named() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(CallFailed, match=f"{target} does not reload; must be the server's --admin-port"):
            reload(target)
    finally:
        server.stop(None)
