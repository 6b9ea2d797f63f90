"""One front-end: `python -m server.frontends.process`, started by `Frontends` and by nobody else.

It is told what to do in a line of JSON on standard input. When that ends, the engine's process has ended: nobody will
answer any more, and the front-end says so and ends too.
"""

import asyncio
import logging
import os
import shutil
import signal
import sys
from typing import Any

import msgspec

from mfalcon.errors import ConfigError
from mfalcon.metrics.front_metrics import FrontMetrics
from server.access.access import Access
from server.config import ServerConfig
from server.frontends import answers, wire
from server.frontends.fleet_metrics import count_in_files
from server.frontends.remote import RemoteEngine
from server.handler import WAITING
from server.logs import log_to_stderr
from server.pseudonym import name_users
from server.runtime import new_event_loop, settle
from server.tls import certificates_of
from server.tracing import trace_to
from server.transports import Transports

logger = logging.getLogger(__name__)


class Orders(msgspec.Struct, frozen=True):
    """What a front-end is told. number, life: which one it is, and how many there were in its place with it.
    directory: where the engine's process listens, and where it counts. settings: those of the server that concern a
    front-end, with the ports that it shares. log_key: of the names of users, see `mfalcon.pseudonym`.
    """

    number: int
    life: int
    directory: str
    settings: dict[str, Any]
    log_key: bytes = b""

    @property
    def name(self) -> str:
        """Of this one alone."""
        return f"{self.number}.{self.life}"

    @property
    def endpoint(self) -> str:
        """Where the engine's process listens."""
        return f"ipc://{self.directory}/engine"


async def front(orders: Orders, config: ServerConfig) -> bool:
    """Answer callers until SIGTERM, then drain; or until the engine is gone. Returns whether all went well."""
    loop = asyncio.get_running_loop()
    stopping, lost = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    serving: asyncio.Task[None] | None = None

    async def serve() -> None:
        await transports.serve(engine)
        settle()
        engine.say_serving()

    async def beat() -> None:
        while True:
            await asyncio.sleep(wire.BEAT_SECONDS)
            engine.beat()
            transports.report()

    def heard(status: answers.Status) -> None:
        nonlocal serving
        if status.phase == WAITING:
            transports.wait_for_redis()
        elif status.phase == wire.SERVING and serving is None:
            serving = asyncio.create_task(serve())

    def read() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            loop.remove_reader(sys.stdin)
            engine.lose("the engine's process has ended")
            lost.set()

    engine = RemoteEngine(orders.endpoint, orders.name, heard)
    metrics = FrontMetrics(orders.number)
    trace_to(config.otlp_endpoint, metrics.spans, "frontend")
    access, certificates = Access(config), certificates_of(config)
    transports = Transports(config, metrics, access, engine.scrape, certificates)
    await transports.listen()
    engine.say_listening()
    beside = [asyncio.create_task(work) for work in (metrics.loop_lag.watch(), beat(), access.watch())]
    if certificates is not None:
        beside.append(asyncio.create_task(certificates.watch()))
    loop.add_reader(sys.stdin, read)
    ends = [asyncio.create_task(event.wait()) for event in (stopping, lost)]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    await transports.stop()
    for task in beside:
        task.cancel()
    engine.close()
    return not lost.is_set()


def main() -> None:
    """Read the orders and follow them."""
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; who starts us decides
        signal.signal(number, signal.SIG_IGN)
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders)
    config = ServerConfig(**orders.settings)
    log_to_stderr(config.log_format)
    name_users(config.log_user_ids, orders.log_key)
    count_in_files(orders.directory, orders.number)
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            if runner.run(front(orders, config)):
                return
    except ConfigError as error:
        logger.error("%s", error)
        sys.exit(1)
    logger.critical("front-end %s: the engine's process has ended, and so does this", orders.name)
    shutil.rmtree(orders.directory, ignore_errors=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
