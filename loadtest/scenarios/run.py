"""Starts what a scenario needs, Redis, servers, Envoy before several, plays it by Locust and ends them all.

    python -m loadtest.scenarios.run steady spike
    python -m loadtest.scenarios.run all --seconds 60 --write docs/results/scenarios.md

Of each scenario Locust's report is written as NAME.html and its figures as NAME.json to `--out`. Exit code 1 if
none was answered.
"""

import argparse
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.balance.group import group
from loadtest.bench.some_checkpoint import DEMO, some_checkpoint
from loadtest.faults.server_process import ServerProcess
from loadtest.report.result import say, write_json
from loadtest.report.table import as_markdown, as_text
from loadtest.scenarios.catalog import SCENARIOS, locustfile
from loadtest.scenarios.page import page
from loadtest.scenarios.play import play
from loadtest.scenarios.result import ScenarioResult
from mfalcon.errors import MFalconError
from mfalcon.models.manifest import load_items

_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """clients: None for what the scenario has. http: ask over HTTP. out: a folder for reports and figures."""

    checkpoint: Path
    seconds: float
    clients: int | None
    http: bool
    out: Path


def run(name: str, options: RunOptions) -> ScenarioResult:
    """One scenario on servers of its own. Raises ConfigError if it cannot be run or no request was answered."""
    locustfile(name)  # a name that is none is refused before anything starts
    setting = SCENARIOS[name]
    options.out.mkdir(parents=True, exist_ok=True)
    given = ["--num-items", str(len(load_items(options.checkpoint).item_id))]
    given += [] if options.clients is None else ["--clients", str(options.clients)]
    with ExitStack() as stack:
        running = stack.enter_context(group(options.checkpoint, setting.replicas, setting.flags))
        if setting.restarts:
            stack.enter_context(_restarted_in_turns(running.replicas, options.seconds))
        host = f"http://{running.front.http}" if options.http else running.front.grpc
        say(f"{name}: {options.seconds:g} s")
        result = play(name, host, options.seconds, given, options.out / f"{name}.html")
    write_json(options.out / f"{name}.json", result)
    return result


@contextmanager
def _restarted_in_turns(servers: Sequence[ServerProcess], seconds: float) -> Iterator[None]:
    """Each is drained and started anew, spread over so many seconds. Raises what goes wrong with that."""
    stopped = threading.Event()

    def restart() -> None:
        for server in servers:
            if stopped.wait(seconds / (len(servers) + 1)):
                return
            server.send(signal.SIGTERM)
            server.wait()
            server.kill()  # nothing is left of it but its guard
            server.start()
            server.wait_ready()

    with ThreadPoolExecutor(1) as thread:
        restarted = thread.submit(restart)
        try:
            yield
        finally:
            stopped.set()
        restarted.result()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Run Locust scenarios on servers of their own.")
    parser.add_argument("scenario", nargs="+", help=f"{', '.join(SCENARIOS)}, or all")
    parser.add_argument("--checkpoint", type=Path, help=f"to serve; {DEMO} if it is there, else random weights")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--http", action="store_true", help="ask over HTTP instead of gRPC")
    parser.add_argument("--out", type=Path, default=Path("build/scenarios"))
    parser.add_argument("--write", type=Path, help="also write the page here, as Markdown")
    given = parser.parse_args()
    if not given.seconds >= 1:
        parser.error(f"--seconds: got {given.seconds:g}, must be at least 1")
    try:
        with some_checkpoint(given.checkpoint) as path:
            options = RunOptions(path, given.seconds, given.clients, given.http, given.out)
            names = list(SCENARIOS) if given.scenario == ["all"] else given.scenario
            results = [run(name, options) for name in names]
    except MFalconError as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    if given.write is not None:
        given.write.write_text(as_markdown(page(results)) + "\n", encoding="utf-8")
    print(as_text(page(results)))


if __name__ == "__main__":
    main()
