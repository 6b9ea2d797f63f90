"""A flood of new TLS connections waits for its turns; who is connected does not, nor does a newcomer of another address
wait behind the flood.
"""

import asyncio
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from server.http.handshakes import BURST_S, End, HandshakeTurns, network_of
from tests.certificates import tls_in
from tests.loadtest.load.virtual_time import in_virtual_time
from tests.server.harness import serving
from tests.server.http.raw import GENEROUS_SECONDS, connected

RATE = 10.5 / BURST_S
AT_ONCE = 11


def begin(turns: HandshakeTurns, hosts: list[str]) -> tuple[list["asyncio.Task[None]"], list[str], list[float]]:
    """A client of each host, in this order; who had a turn in what order, and after how many seconds."""
    had, after, began = list[str](), list[float](), asyncio.get_running_loop().time()

    async def client(host: str) -> None:
        await turns.turn(host)
        had.append(host)
        after.append(asyncio.get_running_loop().time() - began)

    return [asyncio.create_task(client(host)) for host in hosts], had, after


def test_a_burst_begins_at_once_and_the_rest_at_the_rate() -> None:
    ends: list[End] = []

    async def seconds() -> list[float]:
        clients, _, after = begin(HandshakeTurns(RATE, 1_000, 60, ends.append), ["a"] * 40)
        await asyncio.gather(*clients)
        return after

    waited = in_virtual_time(seconds())
    assert waited[:AT_ONCE] == [0] * AT_ONCE
    for number, after in enumerate(waited[AT_ONCE:], start=1):
        assert after == pytest.approx((number - 0.5) / RATE)
    assert ends == ["begun"] * (40 - AT_ONCE)


def test_addresses_take_turns() -> None:
    async def order() -> list[str]:
        turns = HandshakeTurns(1, 1_000, 600, lambda end: None)
        clients, had, _ = begin(turns, ["flood"] * 50 + ["a", "b", "a"])
        await asyncio.gather(*clients)
        return had

    had = in_virtual_time(order())
    assert had[:7] == ["flood", "flood", "a", "b", "flood", "a", "flood"]
    assert len(had) == 53


def test_where_too_many_wait_the_oldest_of_the_fullest_address_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    ends: list[End] = []

    async def closed() -> list[int]:
        turns = HandshakeTurns(1, 10, 600, ends.append)
        clients, _, _ = begin(turns, ["first", "a", *["flood"] * 12])
        await asyncio.wait(clients)
        return [number for number, client in enumerate(clients) if client.cancelled()]

    assert in_virtual_time(closed()) == [2, 3, 4]
    assert sorted(ends) == ["begun"] * 10 + ["closed"] * 3
    assert "closed in front of their handshake" in caplog.text


def test_who_has_no_turn_in_time_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    ends: list[End] = []

    async def late() -> list[BaseException | None]:
        clients, _, _ = begin(HandshakeTurns(1, 1_000, 4.5, ends.append), ["a"] * 10)
        await asyncio.wait(clients)
        return [client.exception() for client in clients]

    had = in_virtual_time(late())
    assert had[:5] == [None] * 5 and all(isinstance(error, OSError) for error in had[5:])  # which closes the connection
    assert sorted(ends) == ["begun"] * 4 + ["late"] * 5
    assert "closed in front of their handshake" in caplog.text


def test_who_leaves_costs_no_turn() -> None:
    async def after_the_others_left() -> float:
        clients, _, after = begin(HandshakeTurns(1, 1_000, 600, lambda end: None), ["a"] * 100 + ["b"])
        await asyncio.sleep(0)
        for client in clients[1:-1]:
            client.cancel()
        await asyncio.wait(clients)
        return after[-1]

    assert in_virtual_time(after_the_others_left()) == pytest.approx(1 - BURST_S)


def test_who_gives_up_and_comes_again_does_not_stand_behind_himself() -> None:
    """600 clients that connect anew after two seconds, as after a restart: no turn is spent on one that has left."""

    async def seconds() -> float:
        loop = asyncio.get_running_loop()
        turns, began, tries = HandshakeTurns(100, 1_000, 10, lambda end: None), loop.time(), list[asyncio.Task[None]]()

        def is_over(until: float) -> bool:
            return loop.time() >= until

        async def client(host: str) -> None:
            while True:
                trying = asyncio.create_task(turns.turn(host, partial(is_over, loop.time() + 2)))
                tries.append(trying)
                await asyncio.wait((trying,), timeout=2)
                if trying.done() and not trying.cancelled():
                    return

        async with asyncio.timeout(60):
            await asyncio.gather(*(client(f"10.0.0.{number % 200}") for number in range(600)))
        return loop.time() - began

    assert in_virtual_time(seconds()) == pytest.approx(6, abs=0.1)


def test_an_address_of_ipv6_is_half_an_address() -> None:
    assert network_of("1.2.3.4") != network_of("1.2.3.5")
    assert network_of("::ffff:1.2.3.4") == network_of("1.2.3.4")
    assert network_of("2001:db8::1") == network_of("2001:db8::2:3:4:5") != network_of("2001:db8:0:1::1")
    assert network_of("fe80::1%lo") == network_of("fe80::2")


async def test_who_is_connected_and_who_comes_from_elsewhere_do_not_wait_behind_a_flood(tmp_path: Path) -> None:
    tls, trusted = tls_in(tmp_path)
    async with serving(**tls, tls_handshake_timeout_s=600, tls_handshakes_per_s=1) as running:
        url = f"https://{running.addresses.http}"
        host, port = running.addresses.http.split(":")
        elsewhere = httpx.AsyncHTTPTransport(verify=trusted, local_address="127.0.0.2")
        async with (
            httpx.AsyncClient(base_url=url, verify=trusted, timeout=GENEROUS_SECONDS) as known,
            httpx.AsyncClient(base_url=url, transport=elsewhere, timeout=GENEROUS_SECONDS) as newcomer,
        ):
            assert (await known.get("/livez")).status_code == 200
            flood = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
            assert (await known.get("/livez")).status_code == 200
            assert (await newcomer.get("/livez")).status_code == 200
            page = (await known.get("/metrics")).text
            begun = next(line for line in page.splitlines() if line.startswith("mfalcon_handshakes_paced_total"))
            assert begun.startswith('mfalcon_handshakes_paced_total{end="begun"}')
            assert 1 <= float(begun.split()[1]) < 100
    async with asyncio.timeout(GENEROUS_SECONDS):  # a server that ends keeps nobody waiting
        for reader, writer in flood:
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()


async def test_connections_that_their_clients_have_closed_take_no_turn(tmp_path: Path) -> None:
    tls, trusted = tls_in(tmp_path)
    async with serving(**tls, tls_handshake_timeout_s=600, tls_handshakes_per_s=1) as running:
        host, port = running.addresses.http.split(":")
        for _ in range(100):  # the server's loop is ours: it accepts none of them before all have left
            with socket.create_connection((host, int(port))) as left:
                left.sendall(b"\x16\x03\x01")
        url = f"https://{running.addresses.http}"
        async with httpx.AsyncClient(base_url=url, verify=trusted, timeout=GENEROUS_SECONDS) as client:
            page = (await client.get("/metrics")).text
    begun = [line for line in page.splitlines() if line.startswith('mfalcon_handshakes_paced_total{end="begun"}')]
    assert begun in ([], ['mfalcon_handshakes_paced_total{end="begun"} 1.0'])


async def test_connections_in_clear_have_no_pace() -> None:
    async with serving(tls_handshakes_per_s=0.001) as running:
        for _ in range(20):
            async with connected(running.addresses.http) as connection:
                await connection.send(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
                assert (await connection.answer()).status == 200
