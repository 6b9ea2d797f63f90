"""What a scrape costs: its series are bounded, and grow by the model alone."""

from prometheus_client.parser import text_string_to_metric_families

from loadtest.bench.scrape import num_series, used
from mfalcon.metrics.catalog import METRICS
from tests.server.harness import serving

OF_A_SERVER, OF_A_MODEL = 140, 465


def test_series_grow_by_so_many_with_each_model() -> None:
    """A label whose values multiply would show here."""
    one, two, three = (num_series(used(number)) for number in (1, 2, 3))
    assert three - two == two - one <= OF_A_MODEL
    assert 2 * one - two <= OF_A_SERVER


async def test_what_callers_make_up_is_no_label() -> None:
    async with serving() as running:

        async def num() -> int:
            text = (await running.http.get("/metrics")).text
            return sum(len(family.samples) for family in text_string_to_metric_families(text))

        async def ask(number: int) -> None:
            await running.http.post(
                "/v1/rank", json={"user_id": f"u{number}", "candidates": [1], "model": f"m{number}"}
            )
            await running.http.get(f"/v1/{number}")

        await ask(0)
        before = await num()
        for number in range(1, 30):
            await ask(number)
        assert await num() == before


def test_every_label_of_a_fixed_set_says_which() -> None:
    free = {
        "model",
        "verb",
        "code",
        "reason",
        "op",
        "node",
        "caller",
        "limit",
        "method",
        "outcome",
        "ensemble",
        "member",
    }
    free |= {"frontend", "device", "dtype", "backend", "architecture", "version", "torch", "hash", "choice"}
    for metric in METRICS:
        if metric.name.startswith("mfalcon_"):
            assert set(metric.labels) - metric.values.keys() <= free, metric.name
