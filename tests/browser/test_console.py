"""Every view of the console and everything that a person can do in it, in a real browser."""

import asyncio
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from mfalcon.errors import StorageUnavailable
from mfalcon.types import EVENT_DTYPE, CacheInfo, CacheSource, RankRequest, RankResult, TellPart
from server.config import load_config
from server.service import Service
from tests.browser.conftest import PATIENCE_MS, Open
from tests.server.access.credentials import one_of_each, table, token, written
from tests.server.fake_engine import TITLE, FakeEngine
from tests.server.harness import FREE_PORTS, Running, Served, serving, serving_engine

pytestmark = pytest.mark.browser
WIDTHS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>&amp;é/..%2f'
START_MS = 1_700_000_000_000


def base(running: Served[Any]) -> str:
    return f"http://{running.addresses.http}"


def give_history(engine: FakeEngine, user_id: str, num: int) -> None:
    """Events an hour apart, the last of an item whose id no JavaScript number holds."""
    events = np.zeros(num, dtype=EVENT_DTYPE)
    events["item_id"] = 1 + np.arange(num) % 100
    events["item_id"][-1] = 2**53 + 1
    events["actions"], events["value"] = 1 << (np.arange(num) % 5), 1 + np.arange(num) % 5
    events["time_ms"] = START_MS + 3_600_000 * np.arange(num)
    engine.histories[user_id] = events


async def view(page: Page, name: str) -> None:
    await page.get_by_role("navigation", name="Views").get_by_role("link", name=name).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(name)
    await expect(page).to_have_title(f"{name} · mfalcon console")


async def ranked(page: Page, user_id: str, candidates: str = "") -> None:
    """Ask in the Rank view, and wait for the last of what it shows."""
    await view(page, "Rank")
    await expect(page.get_by_role("textbox", name="Candidates")).not_to_have_value("")
    await page.get_by_label("User id").fill(user_id)
    if candidates:
        await page.get_by_role("textbox", name="Candidates").fill(candidates)
    await page.get_by_role("button", name="Rank", exact=True).click()
    await expect(page.get_by_text(re.compile("equal to the bit|not comparable")).first).to_be_visible()


async def no_wider_than_the_screen(page: Page) -> None:
    assert await page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
async def test_it_is_accessible(width: str, scheme: str, running: Running, open_page: Open) -> None:
    """axe finds nothing in any view, with results, with a notice, and in the dialog."""
    give_history(running.engine, "ann", 60)
    context: dict[str, Any] = {"viewport": WIDTHS[width], "color_scheme": scheme, "bypass_csp": True}  # axe is injected
    page = (await open_page(base(running), **context)).page

    async def clean() -> None:
        found = await Axe().run(page)
        assert not found.violations_count, found.generate_report()
        await no_wider_than_the_screen(page)

    await expect(page.get_by_text(re.compile("Rates and percentiles"))).to_be_visible()
    await page.get_by_text("Numbers").first.click()
    await clean()
    await ranked(page, "ann")
    await page.get_by_role("button", name="Append and rank again").click()
    await expect(page.get_by_role("heading", name="What the event changed")).to_be_visible()
    await expect(page.get_by_text("equal to the bit").first).to_be_visible()
    await clean()
    await page.get_by_role("textbox", name="Candidates").fill("no id")
    await page.get_by_role("button", name="Rank", exact=True).click()
    await expect(page.get_by_role("alert").filter(has_text="is no item id")).to_be_visible()
    await clean()
    await view(page, "User")
    await page.get_by_role("button", name="Show", exact=True).click()
    await expect(page.get_by_role("heading", name="Timeline")).to_be_visible()
    await page.get_by_role("button", name="Delete …").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await clean()
    await page.get_by_role("button", name="Keep it").click()
    await view(page, "Compare")
    await expect(page.get_by_role("textbox", name="Candidates")).not_to_have_value("")
    await page.get_by_role("button", name="Compare", exact=True).click()
    await expect(page.get_by_text("Rank correlation (Spearman)")).to_be_visible()
    await clean()
    await page.get_by_role("button", name="Token").click()
    await clean()
    docs = (await open_page(base(running), "/docs", **context)).page
    await docs.locator(".op summary").first.click()
    found = await Axe().run(docs)
    assert not found.violations_count, found.generate_report()
    await no_wider_than_the_screen(docs)


async def test_live_shows_what_happens(running: Running, open_page: Open) -> None:
    page = (await open_page(base(running))).page
    await expect(page.get_by_role("status").first).to_have_text("ready")
    await expect(page.get_by_text("No rank was answered")).to_be_visible()
    goodput = page.locator(".figure").filter(has=page.get_by_role("heading", name="Goodput"))
    for _ in range(3):
        await running.http.post("/v1/rank", json={"user_id": "ann", "candidates": [1, 2]})
    await expect(goodput.locator(".value")).to_have_text(re.compile(r"^(?!0\.00).*/s$"))
    await expect(goodput.locator("path.line")).to_have_count(1)
    await expect(page.get_by_role("table", name="Time of answered ranks by stage")).to_contain_text("admission")
    await expect(page.get_by_role("table", name="Models and ensembles")).to_contain_text("fake")
    await expect(page.get_by_role("table", name="Health")).to_contain_text("Engine's process")
    await goodput.get_by_text("Numbers").click()
    await expect(goodput.get_by_role("table")).to_contain_text("s ago")


async def test_rank_shows_scores_time_and_proof(running: Running, open_page: Open) -> None:
    give_history(running.engine, "ann", 7)
    page = (await open_page(base(running))).page
    await ranked(page, "ann", "5, 9007199254740993\n-9223372036854775808;7")
    table = page.get_by_role("table", name="Candidates by score")
    await expect(table.locator("tbody tr")).to_have_count(4)
    await expect(table).to_contain_text("id 5")
    await expect(table).to_contain_text("Item 9007199254740993")
    await expect(table).to_contain_text("Item -9223372036854775808")
    await expect(table).to_contain_text("not known to the model")
    assert [request.candidates.tolist() for request in running.engine.requests] == [[5, 2**53 + 1, -(2**63), 7]] * len(
        running.engine.requests
    )
    assert {request.recompute for request in running.engine.requests} == {False, True}
    assert len({request.request_time_ms for request in running.engine.requests}) == 1
    await expect(page.get_by_text("All 12 numbers of both answers are the same.")).to_be_visible()
    await expect(page.locator(".stack dt").first).to_have_text("Queue")


class Unequal(FakeEngine):
    """An engine whose recomputed scores differ in their last bit."""

    async def rank(
        self, request: RankRequest, deadline: float | None, model: str = "", tell: TellPart | None = None
    ) -> RankResult:
        result = await super().rank(request, deadline, model)
        result = dataclasses.replace(result, cache=CacheInfo(CacheSource.HOST, 40, 0))
        if request.recompute:
            result = dataclasses.replace(result, scores=np.nextafter(result.scores, np.float32(9)))
        return result


async def test_scores_that_differ_in_a_bit_are_not_called_equal(open_page: Open) -> None:
    async with serving_engine(Unequal(), None) as running:
        page = (await open_page(base(running))).page
        await ranked(page, "ann", "5 6 7")
        await expect(page.get_by_text("not equal to the bit")).to_be_visible()


class Partial(FakeEngine):
    """An ensemble of which one member arrives for the second answer alone."""

    async def rank(
        self, request: RankRequest, deadline: float | None, model: str = "", tell: TellPart | None = None
    ) -> RankResult:
        result = await super().rank(request, deadline, model)
        members = tuple(dataclasses.replace(member, arrived=request.recompute) for member in result.members)
        return dataclasses.replace(result, members=members, scores=result.scores + np.float32(request.recompute))


async def test_merges_of_other_members_are_not_compared(open_page: Open) -> None:
    async with serving_engine(Partial(), None) as running:
        page = (await open_page(base(running))).page
        await view(page, "Rank")
        await page.get_by_label("Model").select_option("other")
        await ranked(page, "ann", "5 6 7")
        await expect(page.get_by_text("not comparable")).to_be_visible()


async def test_an_event_is_appended_and_what_it_changes_is_shown(running: Running, open_page: Open) -> None:
    give_history(running.engine, "ann", 7)
    page = (await open_page(base(running))).page
    await ranked(page, "ann", "5 6 9007199254740993")
    await expect(page.get_by_label("Value")).to_have_value("2")  # as in the newest event
    await (
        page.get_by_role("button", name="Choose Item").or_(page.get_by_role("button", name="Choose item")).first.click()
    )
    await page.get_by_label("Item id").fill("9007199254740993")
    await page.get_by_role("checkbox", name="rating_1").check()
    await page.get_by_role("button", name="Append and rank again").click()
    table = page.get_by_role("table", name="Scores before and after the event")
    await expect(table.locator("tbody tr")).to_have_count(3)
    await expect(table).to_contain_text("+0.0625")  # one event more is a sixteenth to this engine
    newest = running.engine.histories["ann"][-1]
    assert (int(newest["item_id"]), len(running.engine.histories["ann"])) == (2**53 + 1, 8)
    assert int(newest["actions"]) & 1
    await expect(page.get_by_text("event 8 of the history")).to_be_visible()


async def test_a_history_is_a_timeline_that_goes_back(running: Running, open_page: Open) -> None:
    give_history(running.engine, "ann", 10_000)
    page = (await open_page(base(running))).page
    await view(page, "User")
    await page.get_by_role("button", name="ann", exact=True).click()
    await page.get_by_role("button", name="Show", exact=True).click()
    events = page.locator(".timeline li:not(.day)")
    await expect(events).to_have_count(50)
    await expect(page.get_by_text("10,000 events").first).to_be_visible()
    await expect(events.first).to_contain_text("Item 9007199254740993")
    await expect(events.nth(1)).to_contain_text(TITLE.format(99))
    await expect(events.nth(1)).to_contain_text("rating_4")
    await page.get_by_role("button", name="Show older").click()
    await expect(events).to_have_count(100)
    states = page.get_by_role("table", name="KV states of this user")
    await expect(states).to_contain_text("host memory")
    await expect(states).to_contain_text("8.0 GiB")
    await expect(states).to_contain_text("fresh")


async def test_a_user_is_deleted_by_whoever_types_the_id(running: Running, open_page: Open) -> None:
    give_history(running.engine, HOSTILE, 3)
    page = (await open_page(base(running))).page
    await view(page, "User")
    await page.get_by_label("User id").fill(HOSTILE)
    await page.get_by_label("User id").press("Enter")
    await page.get_by_role("button", name="Delete …").click()
    dialog = page.get_by_role("dialog")
    go = dialog.get_by_role("button", name="Delete this user")
    await expect(go).to_be_disabled()
    await dialog.get_by_role("textbox").fill(HOSTILE[:-1])
    await dialog.get_by_role("textbox").press("Enter")
    await expect(go).to_be_disabled()
    await page.keyboard.press("Escape")
    await expect(dialog).to_be_hidden()
    assert HOSTILE in running.engine.histories
    await page.get_by_role("button", name="Delete …").click()
    await dialog.get_by_role("textbox").fill(HOSTILE)
    await go.click()
    await expect(page.get_by_role("heading", name="Deleted")).to_be_visible()
    assert HOSTILE not in running.engine.histories
    await expect(page.get_by_role("button", name=HOSTILE)).to_have_count(0)


async def test_two_models_are_compared(running: Running, open_page: Open) -> None:
    page = (await open_page(base(running))).page
    await view(page, "Compare")
    await page.get_by_label("User id").fill("ann")
    await page.get_by_role("textbox", name="Candidates").fill("1 2 3 9007199254740993")
    await expect(page.get_by_label("Second")).to_have_value("other")
    await page.get_by_role("button", name="Compare", exact=True).click()
    await expect(page.get_by_role("table", name="Scores of fake and other").locator("tbody tr")).to_have_count(4)
    await expect(page.get_by_text("0 of 4", exact=True)).to_be_visible()
    assert running.engine.asked_of[-3:-1] == ["fake", "other"] or "other" in running.engine.asked_of


async def test_texts_of_anybody_are_texts(open_page: Open) -> None:
    """Titles of the fake engine are markup, and so is this user."""
    async with serving(console_users=(HOSTILE,)) as running:
        give_history(running.engine, HOSTILE, 5)
        page = (await open_page(base(running))).page
        await ranked(page, HOSTILE, "5 6 7")
        await expect(page.get_by_role("table", name="Candidates by score")).to_contain_text(TITLE.format(7))
        await view(page, "User")
        await page.get_by_role("button", name="Show", exact=True).click()
        await expect(page.locator(".timeline li:not(.day)").nth(1)).to_contain_text(TITLE.format(4))
        assert await page.locator("main img, main script, main b").count() == 0
        assert HOSTILE not in page.url and "?" not in page.url


async def test_the_largest_request_is_pasted(running: Running, open_page: Open) -> None:
    page = (await open_page(base(running))).page
    await ranked(page, "ann", " ".join(map(str, range(1, 16_385))))
    await expect(page.get_by_text("16,384 candidates", exact=True).first).to_be_visible()
    rows = page.get_by_role("table", name="Candidates by score").locator("tbody tr")
    await expect(rows).to_have_count(50)
    await page.get_by_role("button", name="Show more of 16,384").click()
    await expect(rows).to_have_count(550)
    await page.get_by_role("textbox", name="Candidates").fill(" ".join(map(str, range(1, 16_386))))
    await page.get_by_role("button", name="Rank", exact=True).click()
    await expect(page.get_by_role("alert").filter(has_text="must be 1 to 16384 candidates")).to_be_visible()


async def test_a_log_that_cannot_be_reached_is_said(running: Running, open_page: Open) -> None:
    page = (await open_page(base(running))).page
    await ranked(page, "ann", "5 6 7")
    running.engine.fault = StorageUnavailable("the event log in Redis cannot be reached")
    await page.get_by_role("button", name="Rank", exact=True).click()
    await expect(page.get_by_role("alert").filter(has_text="event log in Redis cannot be reached")).to_be_visible()
    running.engine.fault = None
    await page.get_by_role("button", name="Rank", exact=True).click()
    await expect(page.get_by_role("alert").filter(has_text="Redis")).to_have_count(0)


async def test_a_server_that_loads_restarts_and_is_gone(open_page: Open) -> None:
    service = Service(load_config(None, FREE_PORTS | {"drain_seconds": 0}))
    addresses = await service.listen()
    page = (await open_page(f"http://{addresses.http}")).page
    status = page.locator("#status")
    await expect(status).to_have_text("loading")
    await expect(page.get_by_text("No model is known yet")).to_be_visible()
    await service.serve(FakeEngine())
    await expect(status).to_have_text("ready")
    await expect(page.get_by_role("table", name="Models and ensembles")).to_contain_text("fake")
    await service.stop()
    await expect(status).to_have_text("unreachable")
    await expect(page.get_by_text("The server cannot be reached")).to_be_visible()
    again = Service(load_config(None, FREE_PORTS | {"http_port": int(addresses.http.rpartition(":")[2])}))
    await again.listen()
    await again.serve(FakeEngine())
    await expect(status).to_have_text("ready")
    await expect(page.get_by_text("The server cannot be reached")).to_have_count(0)
    await again.stop()


async def test_a_token_is_asked_for_and_kept_in_this_tab(tmp_path: Path, open_page: Open) -> None:
    """Wrong, right, one that lacks rights, and one that is revoked while the page is open."""
    file = one_of_each(tmp_path / "callers.toml")
    async with serving(tokens_file=file, console_users=("ann",)) as running:
        page = (await open_page(base(running))).page
        field = page.get_by_label("Bearer token")
        await expect(field).to_be_focused()
        await expect(page.get_by_text("This server wants a valid token.")).to_be_visible()
        await field.fill("wrong")
        await field.press("Enter")
        await expect(page.get_by_text("It said: authorization: the token is not valid")).to_be_visible()
        await field.fill(token("rank"))
        await page.get_by_role("button", name="Use token").click()
        await expect(page.locator("#status")).to_have_text("ready")
        await expect(field).to_be_hidden()
        await expect(page.get_by_text("Your token does not allow this").first).to_be_visible()  # no live figures
        await ranked(page, "ann", "5 6 7")
        await page.get_by_role("button", name="Append and rank again").click()
        alert = page.get_by_role("alert").filter(has_text="Your token does not allow this")
        await expect(alert).to_contain_text("must have append")
        await view(page, "User")
        await page.get_by_role("button", name="Show", exact=True).click()
        await expect(page.get_by_role("alert").filter(has_text="must have read")).to_be_visible()
        await page.reload()  # which keeps it
        await expect(page.locator("#status")).to_have_text("ready")
        assert token("rank") not in page.url
        assert await page.evaluate("[localStorage.length, document.cookie.length]") == [0, 0]

        await view(page, "Live")
        written(file, table("nobody", ["admin"], [("other", None)]))  # revoked: the server looks again soon
        await expect(field).to_be_focused(timeout=PATIENCE_MS)
        await field.fill("other")
        await field.press("Enter")
        await expect(page.locator("#status")).to_have_text("ready")
        await page.get_by_role("button", name="Token").click()
        await page.get_by_role("button", name="Forget it").click()
        await expect(page.locator("#status")).to_have_text("token needed")


async def test_it_works_with_front_ends(open_page: Open) -> None:
    async with serving(frontends=2, console_users=("ann",)) as running:
        page = (await open_page(base(running))).page
        await expect(page.get_by_role("table", name="Health")).to_contain_text("Front-end 1")
        await ranked(page, "ann", "5 6 7")


async def test_a_keyboard_is_enough(running: Running, open_page: Open) -> None:
    page = (await open_page(base(running))).page
    await expect(page.get_by_role("heading", level=1)).to_have_text("Live")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    await page.get_by_role("link", name="Rank").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Rank")
    await expect(page.locator("#main")).to_be_focused()
    await expect(page.get_by_role("textbox", name="Candidates")).not_to_have_value("")
    await page.get_by_label("User id").focus()
    await page.keyboard.type("x")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("equal to the bit").first).to_be_visible()


async def test_the_description_of_the_api_is_read_offline(running: Running, open_page: Open) -> None:
    page = (await open_page(base(running), "/docs")).page
    await expect(page.locator(".op")).to_have_count(10)
    await page.get_by_text("/v1/rank", exact=True).click()
    await expect(page.get_by_role("table", name="Request").first).to_contain_text("candidates")
    await expect(page.get_by_role("table", name="Request").first).to_contain_text(re.compile("at most 2⁶³"))


async def test_ids_in_answers_keep_their_digits(running: Running, open_page: Open) -> None:
    """The page's own reader of JSON, on what only long numbers break."""
    page = (await open_page(base(running))).page
    inside = '12345678901234567 \\" 9007199254740993'
    text = f'{{"a":[9007199254740993,-9223372036854775808,1.2345678901234567,1e300,7],"b":{json.dumps(inside)}}}'
    parsed = await page.evaluate("async (text) => (await import('/console/api.js')).parse(text)", text)
    assert parsed == {
        "a": ["9007199254740993", "-9223372036854775808", 1.2345678901234567, 1e300, 7],
        "b": inside,
    }


async def test_nobody_waits_for_a_page_that_is_left(running: Running, open_page: Open) -> None:
    """A page that shows another view asks for no more figures."""
    page = (await open_page(base(running))).page
    await expect(page.get_by_text(re.compile("sampled every"))).to_be_visible()
    await view(page, "User")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await asyncio.sleep(3)
    assert not [url for url in asked if url.endswith("/live")]
