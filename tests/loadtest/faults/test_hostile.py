"""Attacks as they are made, in small numbers, on a server in this process; and what a result says of them."""

import dataclasses

import pytest

from loadtest.faults.attacks import ATTACKS
from loadtest.faults.hostile import GRPC_CODES, HTTP_CODES, OTHER_ENDS, HostileOptions, HostileRow, bars, page, run
from loadtest.faults.internals import internals
from loadtest.faults.victim import Heard, Victim
from loadtest.report.table import as_markdown
from tests.server.harness import serving

COUNTS = {
    "malformed protobufs": 300,
    "malformed JSON bodies": 300,
    "half messages": 60,
    "smuggling": 11,
    "pipelines": 4,
}
ROW = HostileRow(
    frontends=0,
    number=1,
    attack="smuggling",
    count=3,
    seconds=1.0,
    codes={"400": 3},
    undocumented=[],
    leaks=[],
    asked=9,
    wrong=0,
    failed={},
    quiet_p99_ms=5.0,
    neighbour_p99_ms=5.5,
    p99_ms=6.0,
    memory_before_mib=300.0,
    memory_most_mib=310.0,
    memory_after_mib=301.0,
    descriptors_before=20,
    descriptors_after=20,
)


@pytest.mark.parametrize("name", [*COUNTS, "compressed bombs", "1 MB of headers"])
async def test_an_attack_is_answered_as_documented(name: str) -> None:
    heard = Heard()
    async with serving() as running:
        attack, _ = ATTACKS[name]
        await attack(Victim(running.addresses.grpc, running.addresses.http, COUNTS.get(name, 3)), heard)
        assert (await running.http.get("/readyz")).status_code == 200
    assert heard.codes.total() >= COUNTS.get(name, 3)
    assert set(heard.codes) <= GRPC_CODES | HTTP_CODES | OTHER_ENDS
    assert heard.leaks == []


def test_bars_hold_or_not() -> None:
    last = dataclasses.replace(ROW, memory_after_mib=302.0)
    assert all(bar.holds for bar in bars([ROW, last]))
    for change in (
        {"undocumented": ["INTERNAL"]},
        {"leaks": ["a path"]},
        {"wrong": 1},
        {"failed": {"UNAVAILABLE": 1}},
        {"p99_ms": 15.2},
        {"neighbour_p99_ms": -5.0},
        {"memory_after_mib": 400.0},
        {"descriptors_after": 21},
    ):
        assert sum(bar.holds is False for bar in bars([ROW, dataclasses.replace(last, **change)])) == 1, change


def test_memory_is_judged_after_a_round_if_there_are_more() -> None:
    grown = dataclasses.replace(ROW, memory_after_mib=400.0)
    again = dataclasses.replace(grown, number=2, memory_after_mib=410.0)
    first, second = bars([ROW, grown]), bars([ROW, grown, again])
    assert [bar.name for bar in first if bar.holds is False] == [
        "memory grown from after the first attack to after the last, MiB"
    ]
    assert [bar.value for bar in second if "the first round" in bar.name] == [10.0]
    assert all(bar.holds for bar in second)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("candidates: got 0, must be 1 to 99 candidates", ""),
        ("mfalcon.v1.RankRequest: got 3 bytes that are no such message", ""),
        ("KeyError: 'x'", "KeyError"),
        ('  File "/srv/app.py", line 3, in rank', ".py"),
        ("server.grpc.edge failed", "server.grpc"),
        ("Input should be <class 'int'>", "<class"),
        ("1 validation error for RankBody", "validation error"),
    ],
)
def test_internals_are_found(text: str, said: str) -> None:
    assert said in internals(text) if said else internals(text) == ""
    assert internals(text, text.encode()) == ""


@pytest.mark.thorough
def test_a_small_measurement() -> None:
    result = run(HostileOptions(share=0.001, frontends=(0,), quiet_s=1), lambda text: None)
    assert [row.attack for row in result.rows] == list(ATTACKS)
    assert all(row.asked > 0 and row.wrong == 0 and not row.undocumented and not row.leaks for row in result.rows)
    assert "floods of frames" in as_markdown(page(result))
