"""What hostile clients do before any request of theirs is encrypted."""

import asyncio
import contextlib
import random
import ssl

from loadtest.faults.victim import CLOSED, PATIENCE_S, SILENT, Heard, Victim, at_once, until_closed

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The start of a client's first message: a record of 512 bytes, of TLS 1.0 as all say, of a handshake."""


async def slow_handshakes(victim: Victim, heard: Heard) -> None:
    """Handshakes that are begun on both ports, of which a byte comes each second; and connections that say nothing."""

    async def trickle(number: int) -> None:
        address = (victim.http, victim.grpc)[number % 2]
        reader, writer = await victim.open(address, in_clear=True)
        reading = asyncio.create_task(until_closed(reader))
        give_up = asyncio.get_running_loop().time() + PATIENCE_S
        with contextlib.suppress(ConnectionError):
            writer.write(HELLO if number % 3 else b"")
            while not reading.done() and asyncio.get_running_loop().time() < give_up:
                await asyncio.wait((reading,), timeout=1)
                if number % 3 and not reading.done():
                    writer.write(b"a")
        heard.add(CLOSED if reading.done() else SILENT)
        reading.cancel()
        writer.transport.abort()

    await at_once(trickle, victim.count, victim.count)


async def handshakes(victim: Victim, heard: Heard) -> None:
    """Handshakes and nothing after them; some break off in the middle, some are noise, some are HTTP in clear."""
    rng = random.Random(17)

    async def shake(number: int) -> None:
        address = (victim.http, victim.grpc)[number % 2]
        kind = number // 2 % 4
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await victim.open(address, in_clear=kind != 0)
                if kind:
                    writer.write((HELLO, rng.randbytes(99), b"GET /v1/model HTTP/1.1\r\nhost: a\r\n\r\n")[kind - 1])
                    if kind > 1:
                        await until_closed(reader)
                writer.transport.abort()
            heard.add("left" if kind < 2 else CLOSED)
        except TimeoutError:
            heard.add(SILENT)
        except (OSError, ssl.SSLError):
            heard.add(CLOSED)

    await at_once(shake, victim.count)
