"""The pages for people: what a browser is sent, what it may do with it, and that numbers and ids are exact."""

import gzip
import re
from pathlib import Path

import httpx
import orjson
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mfalcon.metrics.server_metrics import ServerMetrics
from server.config import load_config
from server.console import live
from server.console.assets import DIRECTORY, HEADERS, MEDIA_TYPES, read_assets
from server.service import Service
from tests.server.access.credentials import RIGHTS, bearer, one_of_each, token
from tests.server.fake_engine import NUM_KNOWN_ITEMS, TITLE
from tests.server.harness import FREE_PORTS, Running, serving

LONGEST_WIRE_BYTES = 100_000
FILES = sorted(path for path in DIRECTORY.iterdir() if path.suffix in MEDIA_TYPES)
CODE = [path for path in FILES if path.suffix == ".js"]
MARKUP = re.compile(
    r"\.(inner|outer)HTML|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(|srcdoc|DOMParser|javascript:|createContextualFragment"
)
"""Ways by which a text becomes markup or code."""


async def test_the_console_loads_in_few_bytes_with_strict_headers(running: Running) -> None:
    """All that a browser asks for to show it, heads and gzip included."""
    wire = 0
    for address in ("/", "/docs", *(f"/console/{path.name}" for path in FILES if path.suffix != ".html")):
        async with running.http.stream("GET", address, headers={"accept-encoding": "gzip"}) as answer:
            raw = b"".join([part async for part in answer.aiter_raw()])
        assert answer.status_code == 200
        assert answer.headers["content-encoding"] == "gzip" and answer.headers["vary"] == "accept-encoding"
        assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
        wire += len(raw) + sum(len(name) + len(value) + 4 for name, value in answer.headers.raw)
        plain = await running.http.get(address, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers and gzip.decompress(raw) == plain.content
    assert wire < LONGEST_WIRE_BYTES


@pytest.mark.parametrize(
    "rule",
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
    ],
)
def test_the_policy_has_no_hole(rule: str) -> None:
    policy = HEADERS["content-security-policy"].split("; ")
    assert rule in policy and "unsafe" not in "".join(policy)


async def test_a_browser_that_has_a_file_is_not_sent_it_again(running: Running) -> None:
    first = await running.http.get("/console/main.js")
    again = await running.http.get("/console/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"") and again.headers["cache-control"] == "no-cache"
    assert (await running.http.get("/console/main.js", headers={"if-none-match": '"other"'})).status_code == 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_host(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(r"""\b(https?|wss?|ftp):|["'(`]//""", text)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".html"], ids=lambda path: path.name)
def test_no_page_has_code_or_style_in_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", text)
    for address in re.findall(r'(?:src|href)="(/[^"]*)"', text):
        assert address in ("/docs", "/openapi.json") or address.removeprefix("/console/") in read_assets()


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_no_script_makes_markup_of_a_text(path: Path) -> None:
    assert not MARKUP.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_every_module_that_a_script_imports_is_served(path: Path) -> None:
    for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8")):
        assert name in read_assets()


@pytest.mark.parametrize("name", ["assets.py", "..%2fassets.py", "../console/live.py", "", "x" * 3_000, "%00", "é"])
async def test_nothing_but_the_files_is_sent(name: str, running: Running) -> None:
    assert (await running.http.get(f"/console/{name}")).status_code == 404


@pytest.mark.parametrize("path", ["/", "/console/api/info", "/console/api/live"])
async def test_the_console_can_be_left_out(path: str) -> None:
    async with serving(console=False) as running:
        assert (await running.http.get(path)).status_code == 404
        assert (await running.http.get("/docs")).status_code == 200
        assert (await running.http.get("/console/docs.js")).status_code == 200


async def test_the_description_of_the_api_can_be_left_out() -> None:
    async with serving(api_docs=False) as running:
        for path in ("/docs", "/openapi.json"):
            assert (await running.http.get(path)).status_code == 404
        assert (await running.http.get("/")).status_code == 200
        assert not (await running.http.get("/console/api/info")).json()["docs"]
    async with serving(api_docs=False, console=False) as running:
        assert (await running.http.get("/console/main.js")).status_code == 404


async def test_what_the_console_is_told_first() -> None:
    async with serving(console_users=("ann", "<b>bob</b>")) as running:
        answer = await running.http.get("/console/api/info")
        told = answer.json()
        assert told.keys() == {"status", "now_ms", "users", "docs"}
        assert (told["status"], told["users"], told["docs"]) == ("ready", ["ann", "<b>bob</b>"], True)
        assert answer.headers["content-type"] == "application/json" and answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_titles_are_of_exact_ids(running: Running) -> None:
    """A browser has no number for an id beyond 2^53, so ids are texts in answers."""
    ids = [2**53 + 1, -(2**63), 2**63 - 1, 7]
    told = (await running.http.post("/console/api/items", json={"item_ids": ids, "model": "fake"})).json()
    assert told["num_items"] == NUM_KNOWN_ITEMS
    assert told["items"] == [[str(item), TITLE.format(item) if item == 7 else ""] for item in ids]
    sampled = (await running.http.post("/console/api/items", json={"sample": 3, "seed": 10})).json()["items"]
    assert sampled == [[str(item), TITLE.format(item)] for item in (11, 12, 13)]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"item_ids": list(range(101))}, 422, "item_ids"),
        ({"item_ids": [2**63]}, 422, "item_ids[0]"),
        ({"item_ids": [""]}, 422, "item_ids[0]"),
        ({"sample": 1_001}, 422, "sample"),
        ({"sample": -1}, 422, "sample"),
        ({"seed": 2**32}, 422, "seed"),
        ({"more": 1}, 422, "more"),
        ({"model": "nobody"}, 404, None),
    ],
)
async def test_bad_wishes_for_items(body: dict[str, object], status: int, field: str | None) -> None:
    async with serving(max_candidates=100) as running:
        answer = await running.http.post("/console/api/items", json=body)
        assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


async def test_live_figures_are_those_of_metrics(running: Running) -> None:
    for _ in range(3):
        await running.http.post("/v1/rank", json={"user_id": "ann", "candidates": [1]})
    await running.http.post("/v1/rank", json={"user_id": "ann", "candidates": []})
    told = (await running.http.get("/console/api/live")).json()
    assert told["status"] == "ready"
    codes = {labels["code"]: value for labels, value in told["values"]["mfalcon_requests"] if labels["verb"] == "rank"}
    assert codes == {"200": 3, "422": 1}
    times = told["histograms"]["mfalcon_request_seconds"]
    [[labels, counts, seconds]] = [row for row in times["rows"] if row[0]["verb"] == "rank"]
    assert labels == {"model": "fake", "transport": "http", "verb": "rank"} and seconds > 0
    assert len(counts) == len(times["bounds"]) + 1 and counts[-1] == 3 and counts == sorted(counts)
    assert told["values"]["process_resident_memory_bytes"][0][1] > 2**20


def test_every_figure_is_a_metric_of_a_server() -> None:
    families = {family.name for family in ServerMetrics().registry.collect()}
    assert {*live.COUNTERS, *live.GAUGES, *live.HISTOGRAMS} <= families


def test_labels_are_whatever_a_model_is_called() -> None:
    metrics = ServerMetrics()
    name = 'a"b\\c\nd{e="f"} 1 <script>'
    metrics.requests.count(name, "rank", "http", "200")
    metrics.stages.took(name, "score", 0.003)
    told = live.snapshot(generate_latest(metrics.registry).decode())
    assert told["values"]["mfalcon_requests"] == [
        [{"model": name, "verb": "rank", "transport": "http", "code": "200"}, 1.0]
    ]
    [[labels, counts, seconds]] = told["histograms"]["mfalcon_stage_seconds"]["rows"]
    assert labels == {"model": name, "stage": "score"} and seconds == 0.003
    bounds = told["histograms"]["mfalcon_stage_seconds"]["bounds"]
    assert counts == [float(bound >= 0.003) for bound in bounds] + [1.0]
    assert orjson.loads(orjson.dumps(told)) == told


def test_it_reads_what_prometheus_own_parser_reads() -> None:
    metrics = ServerMetrics()
    for model, verb, code in (
        ("a", "rank", "200"),
        ('b"\\\n} 7', "rank", "422"),
        ("a", "prefill", "200"),
        ("", "", "400"),
    ):
        metrics.requests.count(model, verb, "http", code)
        metrics.requests.took(model, verb, "http", 0.004)
    text = generate_latest(metrics.registry).decode()
    told = live.snapshot(text)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            if sample.name.removesuffix("_bucket") in live.HISTOGRAMS:
                histogram = told["histograms"][family.name]
                [counts] = [counts for row, counts, _ in histogram["rows"] if row == labels]
                assert counts[[*map(str, histogram["bounds"]), "+Inf"].index(sample.labels["le"])] == sample.value
            elif family.name in (*live.COUNTERS, *live.GAUGES):
                assert [labels, sample.value] in told["values"][family.name]
    assert told["values"].keys() >= {"mfalcon_requests", "process_cpu_seconds", "mfalcon_queue_jobs"}


def test_there_may_be_no_metrics_yet() -> None:
    assert live.snapshot("") == {"values": {}, "histograms": {}}


async def test_pages_that_ask_at_once_share_a_snapshot() -> None:
    num_scrapes = 0

    async def scrape() -> bytes:
        nonlocal num_scrapes
        num_scrapes += 1
        return b"mfalcon_queue_jobs 7.0\n"

    source = live.Live(scrape)
    first = await source.now()
    assert first["values"] == {"mfalcon_queue_jobs": [[{}, 7.0]]}
    for _ in range(5):
        await source.now()
    assert num_scrapes <= 2  # a machine may stand still for longer than a snapshot is fresh


async def test_each_figure_needs_its_right(tmp_path: Path) -> None:
    asked: dict[str, tuple[str, dict[str, object] | None]] = {
        "metrics": ("/console/api/live", None),
        "rank": ("/console/api/items", {"sample": 1}),
    }
    settings = {"tokens_file": one_of_each(tmp_path / "callers.toml"), "console_users": ("ann",)}
    async with serving(**settings) as running:
        for holder in RIGHTS:
            headers = {"authorization": bearer(token(holder))}
            info = await running.http.get("/console/api/info", headers=headers)
            assert info.json()["users"] == (["ann"] if holder in ("rank", "admin") else [])
            for right, (path, body) in asked.items():
                method = "GET" if body is None else "POST"
                answer = await running.http.request(method, path, json=body, headers=headers)
                assert answer.status_code == (200 if holder in (right, "admin") else 403), (holder, path)
        assert (await running.http.get("/console/api/info")).status_code == 401


async def test_a_server_that_loads_says_so_and_shows_its_page() -> None:
    service = Service(load_config(None, FREE_PORTS))
    addresses = await service.listen()
    try:
        async with httpx.AsyncClient(base_url=f"http://{addresses.http}", timeout=30) as http:
            assert (await http.get("/")).status_code == 200
            assert (await http.get("/console/api/info")).json()["status"] == "loading"
            assert (await http.get("/console/api/live")).json()["status"] == "loading"
            refused = await http.post("/console/api/items", json={"sample": 1})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "UNAVAILABLE")
    finally:
        await service.stop()


async def test_front_ends_show_figures_of_the_whole_server_and_titles_of_the_engine() -> None:
    async with serving(frontends=1, console_users=("ann",)) as running:
        assert (await running.http.get("/")).status_code == 200
        assert (await running.http.get("/console/api/info")).json()["users"] == ["ann"]
        assert (await running.http.post("/v1/rank", json={"user_id": "ann", "candidates": [1]})).status_code == 200
        told = (await running.http.get("/console/api/live")).json()
        processes = {labels.get("frontend", "") for labels, _ in told["values"]["process_resident_memory_bytes"]}
        assert processes == {"", "0"}
        assert [value for labels, value in told["values"]["mfalcon_requests"] if labels["verb"] == "rank"] == [1]
        items = {"item_ids": [2**62, 5], "sample": 1, "seed": 0}
        told = (await running.http.post("/console/api/items", json=items)).json()
        assert told["items"] == [[str(2**62), ""], ["5", TITLE.format(5)], ["1", TITLE.format(1)]]
