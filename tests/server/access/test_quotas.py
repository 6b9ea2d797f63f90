"""What a caller may use is counted once, in one place, and the refusal says which limit, of whom, and until when."""

import asyncio
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from mfalcon.errors import DeadlineExceeded, EngineFailure, InvalidInput, MFalconError, NotReady, Overloaded
from mfalcon.metrics.callers import CallerMetrics
from server.access.gate import HEARD_S, Gate
from server.access.quota import DAY_S, Account, Ledger, Quota
from tests.server.access.credentials import (
    CALLS,
    RANK,
    access_of,
    answer_of,
    bearer,
    by_grpc,
    by_http,
    table,
    token,
    written,
)
from tests.server.harness import Running, serving
from tests.server.oip.asking import ITEMS, USER

NOON = 20_000.5 * DAY_S
RATES = Quota(requests_per_s=5, request_burst=3, candidates_per_s=100, candidate_burst=150)


@given(
    st.lists(
        st.tuples(st.floats(0, 0.5), st.integers(0, 400), st.booleans()),
        max_size=60,
    )
)
def test_no_window_holds_more_than_a_burst_and_the_rate(steps: list[tuple[float, int, bool]]) -> None:
    """But for what a single request is larger than the burst; and what is refused passes after the time it was told."""
    account, now = Account("a", RATES), 1_000.0
    passed: list[tuple[float, int]] = []
    for pause, candidates, obeys in steps:
        now += pause
        _, limit, wait_s = account.charge(candidates, now, NOON)
        if limit is not None:
            assert wait_s is not None and wait_s > 0
            if not obeys:
                continue
            now += wait_s + 1e-6
            while (again := account.charge(candidates, now, NOON))[1] is not None:  # the other rate may be longer
                assert again[1] != limit and again[2] is not None
                limit, now = again[1], now + again[2] + 1e-6
        account.running -= 1
        passed.append((now, candidates))
    for first, (start, _) in enumerate(passed):
        asked = 0
        for number, (end, candidates) in enumerate(passed[first:], 1):
            assert number <= 3 + 5 * (end - start) + 1e-3
            assert asked + min(candidates, 150) <= 150 + 100 * (end - start) + 1e-3
            asked += candidates


def test_a_request_larger_than_the_burst_waits_for_all_of_it_and_owes_the_rest() -> None:
    account = Account("a", Quota(candidates_per_s=100, candidate_burst=100))
    assert account.charge(1_000, 0.0, NOON)[1] is None
    _, limit, wait_s = account.charge(1, 0.0, NOON)
    assert limit == "candidates_per_s" and wait_s == pytest.approx(9.01)
    assert account.charge(1, 9.02, NOON)[1] is None


def test_a_day_ends_at_midnight_utc_and_no_clock_that_is_set_back_begins_one() -> None:
    account = Account("a", Quota(candidates_per_day=10))
    assert account.charge(7, 0.0, NOON)[1] is None
    assert account.charge(4, 0.0, NOON)[1:] == ("candidates_per_day", DAY_S / 2)
    assert account.charge(11, 0.0, NOON)[1:] == ("candidates_per_day", None)  # it never will
    assert account.charge(3, 0.0, NOON)[1] is None
    assert account.charge(1, 0.0, NOON - DAY_S)[1] == "candidates_per_day"
    assert account.charge(0, 0.0, NOON)[1] is None  # what has no candidates goes on
    assert account.charge(10, 0.0, NOON + DAY_S / 2)[1] is None


def test_a_clock_that_was_far_ahead_for_a_while_closes_nobody_out() -> None:
    account = Account("a", Quota(candidates_per_day=10))
    assert account.charge(7, 0.0, NOON + 4_000 * DAY_S)[1] is None
    assert account.charge(4, 0.0, NOON)[1:] == ("candidates_per_day", DAY_S / 2)  # what was used stays used today
    assert account.charge(10, 0.0, NOON + DAY_S)[1] is None


def test_what_a_door_has_heard_ends_with_the_limit_that_it_was_of(tmp_path: Path) -> None:
    path = written(tmp_path / "callers.toml", table("a", ["rank"], [("t", None)]))
    access = access_of(path)
    access.gate.close("a", Overloaded("one in a thousand seconds", retry_after_s=1_000, of_caller=True))
    with pytest.raises(Overloaded):
        access.gate.check("a")
    written(path, table("a", ["rank"], [("t", None)], more="requests_per_s = 9"))
    access.look()
    access.gate.check("a")


def test_a_door_asks_again_after_some_seconds_and_says_until_when_it_was_told() -> None:
    now = 100.0
    gate = Gate(lambda: now)
    gate.close("a", Overloaded("one in a thousand seconds", retry_after_s=1_000, of_caller=True))
    now += HEARD_S - 0.1
    with pytest.raises(Overloaded) as refused:
        gate.check("a")
    assert refused.value.retry_after_s == pytest.approx(1_000 - HEARD_S + 0.1)
    now += 0.2
    gate.check("a")  # the limit may be another one by now, where it is counted


def test_other_limits_keep_what_was_used() -> None:
    account = Account("a", Quota(requests_per_s=1, request_burst=4, candidates_per_day=100))
    for _ in range(4):
        assert account.charge(20, 0.0, NOON)[1] is None
    account.adopt(Quota(requests_per_s=100, request_burst=50, candidates_per_day=90))
    _, limit, wait_s = account.charge(1, 0.0, NOON)
    assert limit == "requests_per_s" and wait_s == pytest.approx(0.01)
    assert account.charge(11, 1.0, NOON)[1] == "candidates_per_day"
    account.adopt(Quota())
    assert account.charge(10**9, 1.0, NOON)[1] is None


NOT_TAKEN = [Overloaded("full"), NotReady("loading")]
TAKEN = [DeadlineExceeded("late"), EngineFailure("broken"), InvalidInput("x", 1, "2"), NotReady("?", may_be_done=True)]


@pytest.mark.parametrize("error", [None, *NOT_TAKEN, *TAKEN, asyncio.CancelledError()])
def test_what_the_engine_did_not_take_is_given_back_and_nothing_else(error: BaseException | None) -> None:
    ledger = Ledger(CallerMetrics(CollectorRegistry()))
    ledger.know({"a": Quota(requests_per_s=0.001, request_burst=1, candidates_per_day=5, max_concurrent=1)})
    if error is None:
        with ledger.charged("a", 5):
            pass
    else:
        with pytest.raises(type(error)), ledger.charged("a", 5):
            raise error
    if error in NOT_TAKEN:
        with ledger.charged("a", 5):
            pass
    with pytest.raises(Overloaded, match=r"caller a: requests_per_s: must be within 0\.001"), ledger.charged("a", 1):
        pass
    ledger.know({"a": Quota(candidates_per_day=5)})
    with pytest.raises(Overloaded, match="candidates_per_day: got 1 candidates"), ledger.charged("a", 1):
        pass


def test_who_has_no_account_is_not_counted() -> None:
    ledger = Ledger(CallerMetrics(CollectorRegistry()))
    for name in ("", "nobody"):
        with ledger.charged(name, 10**9):
            pass


def limited(tmp_path: Path, more: str) -> Path:
    """A caller with limits beside one without."""
    web = table("web", ["rank", "append"], [(token("web"), None)], more=more)
    return written(tmp_path / "callers.toml", web, table("app", ["rank"], [(token("app"), None)]))


async def shown(running: Running, metric: str) -> float:
    """A figure of /metrics, which the tests here let everybody read."""
    lines = (await running.http.get("/metrics", headers={"authorization": bearer(token("ops"))})).text.splitlines()
    return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(metric)), "0"))


@pytest.mark.parametrize("frontends", [0, 2])
async def test_exactly_so_many_pass_however_they_come(tmp_path: Path, frontends: int) -> None:
    """Over both transports and through all front-ends at once: 10 requests, or 100 candidates, and not one more."""
    path = limited(tmp_path, "requests_per_s = 0.001\nrequest_burst = 10")
    path.write_text(path.read_text() + table("ops", ["metrics"], [(token("ops"), None)]))
    async with serving(tokens_file=path, frontends=frontends) as running:
        both = [way(running, CALLS["rank"], bearer(token("web"))) for way in (by_grpc, by_http) for _ in range(20)]
        told = await asyncio.gather(*both)
        assert sum(code == "OK" for code, _ in told) == len(running.engine.requests) == 10
        assert {code for code, _ in told} == {"OK", "RESOURCE_EXHAUSTED"}
        refused = next(text for code, text in told if code != "OK")
        assert refused.startswith("caller web: requests_per_s: must be within 0.001; try again in ")
        assert await by_grpc(running, CALLS["rank"], bearer(token("app"))) == ("OK", "")  # nobody else's concern
        assert await shown(running, 'mfalcon_caller_requests_total{caller="web"}') == 10
        assert await shown(running, 'mfalcon_caller_candidates_total{caller="web"}') == 20
        assert await shown(running, 'mfalcon_caller_refused_total{caller="web",limit="requests_per_s"}') >= 1
        assert await shown(running, 'mfalcon_caller_running{caller="web"}') == 0

        # Who is refused is so before his body is read, and still for what is not his to do.
        async with asyncio.timeout(60):
            code = ""
            while code != "RESOURCE_EXHAUSTED":  # a front-end remembers it for two seconds
                assert (await by_grpc(running, CALLS["rank"], bearer(token("web"))))[0] == "RESOURCE_EXHAUSTED"
                code, _ = await by_grpc(running, CALLS["rank"], bearer(token("web")), body=b"\xff")
        assert (await by_grpc(running, CALLS["delete"], bearer(token("web"))))[0] == "PERMISSION_DENIED"
        answer = await answer_of(running, CALLS["rank"], bearer(token("web")))
        assert (answer.status_code, 900 < int(answer.headers["retry-after"]) <= 1_000) == (429, True)
        assert "x-rank-retry" not in answer.headers  # another replica is no way around it


async def test_candidates_are_counted_and_appends_have_none(tmp_path: Path) -> None:
    path = limited(tmp_path, "candidates_per_day = 5\nmax_concurrent = 1")
    async with serving(tokens_file=path) as running:
        known = bearer(token("web"))
        assert await by_grpc(running, CALLS["rank"], known) == ("OK", "")
        assert await by_http(running, CALLS["rank"], known) == ("OK", "")
        bad = await running.http.post(
            "/v1/rank", json={"user_id": "", "candidates": [1]}, headers={"authorization": known}
        )
        assert bad.status_code == 422
        code, text = await by_http(running, CALLS["rank"], known)
        assert code == "RESOURCE_EXHAUSTED"
        assert text.startswith("caller web: candidates_per_day: got 2 candidates, must be within 5; try again in ")
        assert await by_http(running, CALLS["append"], known) == ("OK", "")


@pytest.mark.parametrize("frontends", [0, 1])
async def test_each_rank_of_a_batch_is_charged(tmp_path: Path, frontends: int) -> None:
    path = limited(tmp_path, "requests_per_s = 0.001\nrequest_burst = 3")
    async with serving(tokens_file=path, frontends=frontends) as running:
        headers = {"authorization": bearer(token("web"))}
        ranks = [{"user_id": f"u{number}", "candidates": [1]} for number in range(8)]
        answer = await running.http.post("/v1/rank/batch", json={"requests": ranks}, headers=headers)
        outcomes = answer.json()["outcomes"]
        assert sum("ranked" in outcome for outcome in outcomes) == len(running.engine.requests) == 3
        failed = [outcome["failure"] for outcome in outcomes if "failure" in outcome]
        assert {failure["code"] for failure in failed} == {"RESOURCE_EXHAUSTED"}
        assert all(failure["retry_after_ms"] > 900_000 for failure in failed)


async def test_a_stream_is_charged_once_and_its_place_is_free_when_it_is_left(tmp_path: Path) -> None:
    async with serving(tokens_file=limited(tmp_path, "candidates_per_day = 6\nmax_concurrent = 1")) as running:
        known, engine = bearer(token("web")), running.engine
        engine.part_len = 1
        engine.parts_gate.clear()
        call = running.stub.RankStream(RANK, metadata=(("authorization", known),), timeout=60)
        assert len((await call.read()).scores) == 1
        code, text = await by_http(running, CALLS["rank"], known)
        assert (code, text[:25]) == ("RESOURCE_EXHAUSTED", "caller web: max_concurren")
        call.cancel()
        await asyncio.wait_for(engine.cancelled.acquire(), 60)
        engine.parts_gate.set()
        async with asyncio.timeout(60):  # a call ends a little after the engine's work for it
            while (told := await by_http(running, CALLS["stream"], known))[0] == "RESOURCE_EXHAUSTED":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert told == ("OK", "")
        body, headers = {"inputs": [USER, ITEMS]}, {"authorization": known}
        answer = await running.http.post("/v2/models/fake/infer", json=body, headers=headers)
        assert answer.status_code == 200
        answer = await running.http.post("/v2/models/fake/infer", json=body, headers=headers)
        says = "caller web: candidates_per_day: got 2 candidates, must be within 6"
        assert (answer.status_code, answer.json()["error"][: len(says)]) == (429, says)
        code, text = await by_grpc(running, CALLS["stream"], known)
        assert (code, text[: len(says)]) == ("RESOURCE_EXHAUSTED", says)


async def test_one_at_a_time(tmp_path: Path) -> None:
    async with serving(tokens_file=limited(tmp_path, "max_concurrent = 1")) as running:
        running.engine.gate.clear()
        first = asyncio.create_task(by_grpc(running, CALLS["rank"], bearer(token("web"))))
        await running.engine.entered.wait()
        code, text = await by_http(running, CALLS["rank"], bearer(token("web")))
        assert (code, text) == (
            "RESOURCE_EXHAUSTED",
            "caller web: max_concurrent: must be within 1; try again in 100 ms",
        )
        running.engine.gate.set()
        assert await first == ("OK", "")
        assert await by_http(running, CALLS["rank"], bearer(token("web"))) == ("OK", "")


async def test_one_caller_has_no_more_than_half_of_the_places_for_calls(tmp_path: Path) -> None:
    """They are his until he has read the answers, however long that is."""
    async with serving(tokens_file=limited(tmp_path, ""), grpc_max_calls=5) as running:
        running.engine.gate.clear()
        mine, others = ([("authorization", bearer(token(name)))] for name in ("web", "app"))
        calls = []
        async with asyncio.timeout(60):
            for number in (1, 2, 3):  # one by one: few may wait for their message
                calls.append(running.stub.Rank(RANK, metadata=mine, timeout=60))
                while running.engine.num_entered < number:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        for call in ("rank", "stream"):
            assert await by_grpc(running, CALLS[call], bearer(token("web"))) == (
                "RESOURCE_EXHAUSTED",
                "caller web: calls at once: must be within 3, until their answers are read",
            )
        other = running.stub.Rank(RANK, metadata=others, timeout=60)
        running.engine.gate.set()
        assert len((await other).scores) == 2
        await asyncio.gather(*calls)
        async with asyncio.timeout(60):  # a call ends here a little after it has there
            while (await by_grpc(running, CALLS["stream"], bearer(token("web"))))[0] != "OK":  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def test_limits_are_sane(tmp_path: Path) -> None:
    with pytest.raises(MFalconError, match=r"callers\[0\]: request_burst: must not be given without requests_per_s"):
        access_of(limited(tmp_path, "request_burst = 3"))
    for bad in ("requests_per_s = 0", "requests_per_s = nan", "max_concurrent = 0", "candidates_per_day = -1"):
        with pytest.raises(MFalconError, match=r"callers\[0\]\.[a-z_]+: must be "):
            access_of(limited(tmp_path, bad))
    assert math.isfinite(access_of(limited(tmp_path, "requests_per_s = 1e9")).quotas["web"].requests_per_s or math.inf)
