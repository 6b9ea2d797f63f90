"""A real Prometheus scrapes two real servers, records what it should, and raises the alarm when one is killed and Redis
is frozen.
"""

import re
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench.some_checkpoint import some_checkpoint
from loadtest.faults.redis_server import RedisServer
from loadtest.faults.server_process import ServerProcess
from mfalcon.metrics.alerts import GROUPS, Alert, Recorded
from mfalcon.models.manifest import load_items
from mfalcon_client import Client, ClientError, Event
from tests.deploy.prometheus import PATIENCE_S, Prometheus, prometheus

NUM_USERS = 7
RECORDED = [rule.name for group in GROUPS for rule in group.rules if isinstance(rule, Recorded)]
WELL = {"MfalconErrorBudgetBurnsFast", "MfalconErrorBudgetBurnsSlowly", "MfalconSlow", "MfalconEventLoopLate"}
"""What may fire on a busy machine while all is well."""


def rules(asked: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in asked.ask("rules")["groups"] for rule in group["rules"]]


def firing(asked: Prometheus) -> set[str]:
    return {rule["name"] for rule in rules(asked) if rule.get("state") == "firing"}


def rank(server: ServerProcess, items: list[int], num: int) -> int:
    """How many of so many ranks were answered."""
    answered = 0
    with Client(server.grpc) as client:
        for number in range(num):
            try:
                client.rank(f"user {number % NUM_USERS}", items, timeout_s=5)
            except ClientError:
                continue
            answered += 1
    return answered


@pytest.mark.thorough
def test_two_servers_are_scraped_recorded_and_missed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        checkpoint = stack.enter_context(some_checkpoint(None))
        redis = stack.enter_context(RedisServer())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mfalcon-alerts-")))
        flags = ("--redis-url", redis.url)
        one, two = (stack.enter_context(ServerProcess(checkpoint, directory, flags)) for _ in range(2))
        asked = stack.enter_context(prometheus(tmp_path, one.http, two.http))
        items = load_items(checkpoint).item_id[:200].tolist()

        now_ms = time.time_ns() // 1_000_000
        with Client(one.grpc) as client:
            for number in range(NUM_USERS):
                seen = [Event(item, now_ms + at, actions=1, value=3.0) for at, item in enumerate(items)]
                client.append_events(f"user {number}", seen)

        asked.until('sum(up{job="mfalcon"})', 1)
        assert {target["health"] for target in asked.ask("targets")["activeTargets"]} == {"up"}
        give_up = time.monotonic() + PATIENCE_S
        while missing := [name for name in RECORDED if not asked.values(name)]:
            assert time.monotonic() < give_up, missing
            assert rank(one, items, 20) and rank(two, items, 20)
        goodput = asked.until("mfalcon:goodput:rate5m", 0)
        states = asked.until("mfalcon:state_hits:ratio_rate5m", 0)
        assert asked.values("mfalcon:requests_failed:ratio_rate5m") == [0.0]
        all_rules = rules(asked)
        assert {rule["name"] for rule in all_rules} == {rule.name for group in GROUPS for rule in group.rules}
        assert {(rule["health"], rule.get("lastError", "")) for rule in all_rules} == {("ok", "")}
        assert firing(asked) <= WELL
        print(f"goodput {goodput:.1f} a second, {states:.0%} of the states found; {len(all_rules)} rules are well")

        two.kill()
        redis.freeze()
        began = time.monotonic()
        expected = {"MfalconDown", "MfalconRedisAway"}
        while not expected <= (now := firing(asked)):
            assert time.monotonic() - began < PATIENCE_S, now
            rank(one, items, 1)
        away = [alert for alert in asked.ask("alerts")["alerts"] if alert["labels"]["alertname"] in expected]
        assert all(re.match(r"docs/operations.md#mfalcon\w+$", alert["annotations"]["runbook"]) for alert in away)
        print(f"after {time.monotonic() - began:.0f} s: {', '.join(sorted(now))}")
        redis.thaw()


def test_alerts_wait_for_no_longer_than_the_patience_of_this_test() -> None:
    waits = {rule.name: rule.wait for group in GROUPS for rule in group.rules if isinstance(rule, Alert)}
    assert (waits["MfalconDown"], waits["MfalconRedisAway"]) == ("1m", "1m")
