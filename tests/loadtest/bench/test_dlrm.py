"""The 285x table: its counting by hand, what it refuses, and no claim beside a slow DLRM or wrong scores."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner, Result

from loadtest.bench import dlrm_ratio
from loadtest.bench.dlrm import DLRMS, DlrmSize, random_candidates, random_dlrm, random_user
from loadtest.bench.dlrm_page import page
from loadtest.bench.dlrm_pairs import (
    MOST_EVENTS,
    RANKERS,
    Pair,
    counted_ratio,
    history_for,
    pairs_of,
    served_flops,
    unshared_flops,
)
from loadtest.bench.dlrm_ratio import Checked, RatioOptions, RatioResult, RatioRow, bars, run
from loadtest.bench.floor import prefill_work, score_work
from loadtest.bench.peaks import Peaks
from loadtest.report.table import as_markdown, as_text
from mfalcon.cli import bench
from mfalcon.errors import ConfigError
from mfalcon.models.din_split import DinSplit, UserSide

SLOW = Peaks(1e6, "matmul", 1e6, "matmul", 1e6, "torch")
"""Anything reaches such a peak."""
FAST = Peaks(1e18, "matmul", 1e18, "matmul", 1e18, "torch")
TINY = RatioOptions(ratio=2.0, dlrms=("small",), shapes=("tiny",), candidates=(5, 70), rounds=2)


@pytest.fixture(autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Peaks], None]:
    """Probing takes seconds; here any number will do."""
    return lambda of: monkeypatch.setattr(dlrm_ratio, "probe", lambda _: of)


def measured(options: RatioOptions = TINY) -> RatioResult:
    return run(options, lambda _: None)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(bench.app, ["dlrm", *arguments])


def test_the_pair_of_the_paper_by_hand() -> None:
    """base : d128L3, as docs/results/dlrm285.md shows it."""
    (pair,) = pairs_of(285, ["base"], ["d128L3"])
    n, d, layers = pair.n, 128, 3
    assert (pair.dlrm_flops, n, pair.refused) == (14_973_760, 2_527, None)
    prefill = (layers - 1) * (n * 10 * d * d + 4 * d * n * (n + 1) // 2) + n * 4 * d * d
    score = layers * (10 * d * d + 4 * d * (n + 1))
    assert pair.ranker_flops == prefill + score and pair.ratio == pytest.approx(285, rel=1e-3)
    for m in (1_024, 16_384):
        assert counted_ratio(pair, m) == pytest.approx(m * 14_973_760 / (prefill + m * score))
    assert counted_ratio(pair, 1_024) == pytest.approx(1.75, abs=5e-3)
    assert counted_ratio(pair, 16_384) == pytest.approx(3.23, abs=5e-3)


@given(shape=st.sampled_from(sorted(RANKERS)), target=st.integers(10**6, 10**14))
def test_the_history_is_the_shortest_that_has_the_work(shape: str, target: int) -> None:
    n = history_for(RANKERS[shape], target)
    assert n == 0 or unshared_flops(RANKERS[shape], n) >= target
    assert n <= 1 or unshared_flops(RANKERS[shape], n - 1) < target
    assert n > 0 or unshared_flops(RANKERS[shape], 1) > target


@pytest.mark.parametrize("size", list(DLRMS.values()), ids=list(DLRMS))
def test_what_is_served_has_the_flops_that_are_counted(size: DlrmSize) -> None:
    """By torch's counter of one request of many candidates, in which the user's side is little."""
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 (it loads much)

    m = 1_000
    split = DinSplit(random_dlrm(size, torch.float32, 0))
    (user, events), items = random_user(size, torch.float32, 0), random_candidates(size, m, torch.float32, 0)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        split.raw(split.user_side(user, events), items, 500)
    assert counter.get_total_flops() / m == pytest.approx(served_flops(size), rel=5e-3)
    assert served_flops(size) < random_dlrm(size, torch.float32, 0).flops()


def test_a_long_history_is_refused_alone() -> None:
    short, long = pairs_of(285, ["wide"], ["d128L3", "tiny"])
    assert short.refused is None and long.n > MOST_EVENTS and f"more than {MOST_EVENTS:,}" in str(long.refused)


@pytest.mark.parametrize("ratio", [1e-9, 1e9, 1e300, 0.0, -1.0, float("nan"), float("inf")])
def test_no_ratio_that_leaves_nothing(ratio: float) -> None:
    with pytest.raises(ConfigError, match="ratio: got"):
        pairs_of(ratio, ["base"], ["d128L3", "S"])


def test_the_page_of_a_run(peaks: Callable[[Peaks], None]) -> None:
    peaks(SLOW)
    result = measured()
    assert [row.m for row in result.rows] == [5, 70] and not result.complaints
    assert {one.model.split()[0] for one in result.checked} == {"DLRM", "tiny,"}
    shape = RANKERS["tiny"]
    for row in result.rows:
        assert row.claims and row.dlrm.clock.num_samples == 2
        assert row.dlrm_microbatch <= row.m and row.ranker_microbatch <= row.m
        n, m, dlrm = row.pair.n, row.m, row.pair.dlrm_flops
        prefill, score = prefill_work(shape, n).flops, score_work(shape, n, m).flops
        assert row.cold.counted == pytest.approx(m * dlrm / (prefill + score)) == counted_ratio(row.pair, m)
        assert row.hit.counted == pytest.approx(m * dlrm / score)
        assert row.hit.counted_served == pytest.approx(m * row.pair.served_flops / score)
        assert row.cold.least <= row.cold.median <= row.cold.most
        assert row.computed_of_peak < row.of_peak
    assert result.clock == "CPU time"
    for text in (as_text(page(result)), as_markdown(page(result))):
        words = " ".join(text.split())  # prose of a page is filled
        assert "no claim" not in words.lower() and "does not say what its complexity counts" in words


def test_no_claim_beside_a_slow_dlrm(peaks: Callable[[Peaks], None]) -> None:
    peaks(FAST)
    result = measured()
    text = as_text(page(result))
    assert not any(row.claims for row in result.rows)
    assert "No claim where the DLRM is below 60% of the probed peak: small at m=5 0%, small at m=70 0%" in text
    assert text.count("no claim") == 3 * len(result.rows)


def test_no_claim_beside_wrong_scores(peaks: Callable[[Peaks], None], monkeypatch: pytest.MonkeyPatch) -> None:
    peaks(SLOW)
    honest = DinSplit.raw

    def off(split: DinSplit, side: UserSide, items: Tensor, microbatch: int) -> Tensor:
        return honest(split, side, items, microbatch) + 1e-3

    monkeypatch.setattr(DinSplit, "raw", off)
    result = measured()
    assert len(result.complaints) == 1 and "DLRM small: differs by" in result.complaints[0]
    text = as_text(page(result))
    assert "No claim: DLRM small" in text and text.count("no claim") == 3 * len(result.rows)
    answer = invoke("--ratio", "2", "--dlrm", "small", "--shape", "tiny", "--m", "5", "--rounds", "1")
    assert answer.exit_code == 1 and "no claim" in answer.output


def test_bars_are_of_the_paper_s_pair(peaks: Callable[[Peaks], None]) -> None:
    peaks(SLOW)
    options = replace(TINY, ratio=285.0)
    (row, _) = measured().rows
    pair = Pair("base", "d128L3", 2_527, 14_973_760, 11_649_856, 4_268_818_432)

    def told(m: int, median: float, of_peak: float) -> RatioRow:
        cold = replace(row.cold, median=median, counted=counted_ratio(pair, m))
        return replace(row, pair=pair, m=m, cold=cold, of_peak=of_peak)

    good = bars(options, [told(1_024, 1.6, 0.7), told(16_384, 2.9, 0.7)], ())
    assert [bar.holds for bar in good] == [True, True, True, False, True, True]
    slow = bars(options, [told(1_024, 1.6, 0.5)], ())
    assert [bar.holds for bar in slow] == [None, None, False, None, None, None]
    wrong = bars(options, [told(1_024, 1.6, 0.7)], [Checked("DLRM", 1.0, 1e-6)])
    assert [bar.holds for bar in wrong] == [None, None, True, None, None, None, False]
    assert not Checked("DLRM", float("nan"), 1e-6).holds
    assert bars(TINY, [told(1_024, 1.6, 0.7)], ()) == ()


def test_the_command_line(peaks: Callable[[Peaks], None], tmp_path: Path) -> None:
    peaks(SLOW)
    pytest.importorskip("matplotlib")
    small = ("--ratio", "2", "--dlrm", "small", "--shape", "tiny", "--shape", "tiny", "--m", "6", "--rounds", "1")
    picture, written = tmp_path / "p.png", tmp_path / "page.md"
    answer = invoke(*small, "--json", "--plot", str(picture), "--write", str(written))
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)
    assert found["benchmark"] == "dlrm" and len(found["rows"]) == 1 and found["rows"][0]["m"] == 6
    assert picture.read_bytes().startswith(b"\x89PNG") and "| small |" in written.read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is no device")
def test_without_a_device_it_says_so() -> None:
    answer = invoke("--device", "cuda")
    assert answer.exit_code != 0 and "device: got 'cuda'" in str(answer.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--dlrm", "huge"), "dlrm: got 'huge'"),
        (("--shape", "B"), "shape: got 'B'"),
        (("--ratio", "nan"), "ratio: got nan"),
        (("--ratio", "-285"), "ratio: got -285"),
        (("--ratio", "1e12"), "no pair is left"),
        (("--dtype", "float8"), "dtype: got 'float8'"),
        (("--device", "tpu"), "device: got 'tpu'"),
        (("--backend", "none"), "backend: got 'none'"),
        (("--m", "0"), "Invalid value"),
        (("--m", "9999999999999999999999"), "Invalid value"),
        (("--rounds", "0"), "Invalid value"),
        (("--threads", "-1"), "Invalid value"),
        (("--write", "/nowhere/at/all/page.md"), "there is no folder"),
    ],
)
def test_hostile_options(peaks: Callable[[Peaks], None], arguments: tuple[str, ...], says: str) -> None:
    peaks(SLOW)
    named = ("--ratio", "2", "--dlrm", "small", "--shape", "tiny")
    usual = () if arguments[0] in named else named
    answer = invoke(*usual, *arguments)
    told = f"{answer.output}{answer.exception}"
    assert answer.exit_code != 0 and says in told
