"""A DLRM and a ranker behind one server: the registry's DLRM has the counted FLOPs, and a search is one page."""

import asyncio
import os
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from loadtest.bench.dlrm import DLRMS, DlrmSize, dlrm_checkpoint, random_dlrm
from loadtest.bench.dlrm_pairs import pairs_of
from loadtest.bench.dlrm_serving import DLRM, RANKER, ServingOptions, ServingResult, ServingRow, page, run
from loadtest.report.machine import this_machine
from loadtest.report.table import Table, as_text
from mfalcon.cli import bench
from mfalcon.errors import ConfigError
from mfalcon.models.din import Din

TINY = ServingOptions(ratio=2, dlrm="small", shape="tiny", candidates=5, seconds=1.5, rate=20)


def row(model: str, kind: str, holds: float | None, same_p99_ms: float | None, wrong: int = 0) -> ServingRow:
    return ServingRow(model, kind, "backend", holds, 30.0, 10.0, 70.0, 0.0, 9.0, same_p99_ms, wrong)


def result_of(*rows: ServingRow) -> ServingResult:
    (pair,) = pairs_of(TINY.ratio, [TINY.dlrm], [TINY.shape])
    return ServingResult("dlrm-serving", this_machine(), None, TINY, pair, rows[0].holds, rows)


@pytest.mark.parametrize("size", list(DLRMS.values()), ids=list(DLRMS))
def test_the_registry_s_dlrm_is_the_one_that_is_counted(size: DlrmSize) -> None:
    model = dlrm_checkpoint(size, 50).model
    assert isinstance(model, Din)
    assert model.network.flops() == random_dlrm(size, torch.float32, 0).flops()
    assert (model.network.user_dim, model.network.item_dim) == (size.user_dim, size.item_dim)


def test_the_page_compares_with_the_dlrm() -> None:
    rows = (
        row(DLRM, "any", 20.0, 70.0),
        row(RANKER, "cached", 50.0, 69.0),
        row(RANKER, "cold", 10.0, 71.0),
        row(RANKER, "mixed", None, None),
    )
    rates, same = (part for part in page(result_of(*rows)) if isinstance(part, Table))
    assert [line[5] for line in rates.rows] == ["1.00", "2.50", "0.50", "-"]
    assert [line[4] for line in same.rows] == ["-", "yes", "NO", "-"]
    none = result_of(row(DLRM, "any", None, None), *rows[1:])
    (alone,) = (part for part in page(none) if isinstance(part, Table))
    assert [line[5] for line in alone.rows] == ["-"] * 4
    wrong = result_of(row(DLRM, "any", 20.0, 70.0, wrong=3))
    assert wrong.complaints == ["dlrm, any: 3 wrong answers"] and wrong.complaints[0] in as_text(page(wrong))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"rate": 1e9}, "rate: got 1000000000"),
        ({"candidates": 10**8}, "candidates: got"),
        ({"dlrm": "huge"}, "dlrm: got 'huge'"),
        ({"shape": "B"}, "shape: got 'B'"),
        ({"ratio": float("nan")}, "ratio: got nan"),
        ({"ratio": 1e9}, "no pair is left"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_starts(wrong: dict[str, Any], why: str) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match=why):
        run(replace(TINY, **wrong), said.append)
    assert not said


def test_hostile_options() -> None:
    for arguments in (("--m", "0"), ("--m", "999999999"), ("--p99-ms", "0"), ("--seconds", "0"), ("--rate", "-1")):
        assert CliRunner().invoke(bench.app, ["dlrm-serving", *arguments]).exit_code == 2


@pytest.mark.thorough
def test_a_search_on_both_models_is_one_page() -> None:
    """Any rate holds until the search has made its runs; nothing is wrong, and the DLRM keeps nothing."""
    result = run(replace(TINY, p99_ms=1e-3, seconds=1), lambda _: None)
    assert [(one.model, one.kind, one.holds) for one in result.rows] == [
        (DLRM, "any", None),
        (RANKER, "cached", None),
        (RANKER, "mixed", None),
        (RANKER, "cold", None),
    ]
    assert result.same_rate is None and not result.complaints
    assert result.rows[1].encoded == 0 and result.rows[3].encoded == 1
    assert all(one.p99_ms is not None for one in result.rows)


@pytest.mark.thorough  # test_saturation ends the same loop in the same way
def test_ctrl_c_ends_the_whole_bench() -> None:
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "requests a second" in text:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(asyncio.CancelledError):
        run(TINY, say)
    assert not any(RANKER in text for text in said)
