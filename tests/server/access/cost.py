"""What a caller's check and account cost in CPU time: `python -m tests.server.access.cost`."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry

from mfalcon.metrics.callers import CallerMetrics
from server.access.access import Access
from server.access.caller import Right
from server.access.quota import Ledger, Quota
from server.settings.access import AccessSettings
from tests.server.access.credentials import bearer, token
from tests.server.access.jwt_makers import signed
from tests.server.access.table import settings

TIMES, RUNS = 20_000, 5
EVERY_LIMIT = Quota(1e9, 10**6, 1e12, 10**9, 10**15, 1_000)


def microseconds(act: Callable[[], object]) -> float:
    """Of the process, each; the best of some runs: what others do meanwhile is not ours."""
    best = float("inf")
    for _ in range(RUNS):
        began = time.process_time()
        for _ in range(TIMES):
            act()
        best = min(best, time.process_time() - began)
    return best / TIMES * 1e6


def main() -> None:
    """Print them."""
    with tempfile.TemporaryDirectory() as directory:
        access = Access(AccessSettings.model_validate(settings(Path(directory))))
        own, known = bearer(token("web")), bearer(signed())
        print(f"bearer token and right: {microseconds(lambda: access.caller(own).must(Right.RANK)):.2f} us")
        print(f"JWT that is known: {microseconds(lambda: access.caller(known).must(Right.RANK)):.2f} us")
        for name in ("RS256", "ES256", "EdDSA"):
            fresh = [bearer(signed(name, jti=str(number))) for number in range(400)]
            began = time.process_time()
            for each in fresh:
                access.caller(each)
            print(f"JWT for the first time, {name}: {(time.process_time() - began) / len(fresh) * 1e6:.0f} us")
        ledger = Ledger(CallerMetrics(CollectorRegistry()))
        ledger.know({"web": EVERY_LIMIT})

        def charge() -> None:
            with ledger.charged("web", 1_000):
                pass

        print(f"account with every limit: {microseconds(charge):.2f} us")


if __name__ == "__main__":
    main()
