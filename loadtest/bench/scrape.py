"""What a scrape of /metrics costs: `python -m loadtest.bench.scrape`. Processor time, so that other work on the machine
does not show, of a server each of whose models has answered everything in every way.
"""

import statistics
import time
from typing import get_args

from prometheus_client import generate_latest

from mfalcon.metrics.model_states import ModelAnswers, ModelStates
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.metrics.stages import Stage

VERBS = ("rank", "prefill", "get_model")
CODES = {
    "grpc": (
        "OK",
        "INVALID_ARGUMENT",
        "RESOURCE_EXHAUSTED",
        "DEADLINE_EXCEEDED",
        "UNAVAILABLE",
        "INTERNAL",
        "CANCELLED",
    ),
    "http": ("200", "422", "429", "504", "503", "500", "499"),
}
NUM_SCRAPES = 20


def used(num_models: int) -> ServerMetrics:
    """The metrics of a server of so many models, with every series that each of them can have in this process."""
    metrics = ServerMetrics()
    for model in (f"model-{number}" for number in range(num_models)):
        ModelStates(metrics.states, model)
        ModelAnswers(metrics.states, model)
        metrics.device.step(model, 1, 0.01, 0.01)
        for stage in get_args(Stage):
            metrics.stages.took(model, stage, 0.01)
        for transport in CODES:
            metrics.requests.began_to_answer(model, transport, 0.01)
        for verb in VERBS:
            for transport, codes in CODES.items():
                metrics.requests.took(model, verb, transport, 0.01)
                for code in codes:
                    metrics.requests.count(model, verb, transport, code)
    return metrics


def num_series(metrics: ServerMetrics) -> int:
    """Samples of a scrape."""
    return sum(len(family.samples) for family in metrics.registry.collect())


def main() -> None:
    """Print a table."""
    print("| models | series | KiB | ms of processor time a scrape, median (least to most) |")
    print("|---|---|---|---|")
    for num_models in (1, 20):
        metrics = used(num_models)
        took = []
        for _ in range(NUM_SCRAPES):
            began = time.process_time()
            text = generate_latest(metrics.registry)
            took.append(1e3 * (time.process_time() - began))
        ms = f"{statistics.median(took):.1f} ({min(took):.1f} to {max(took):.1f})"
        print(f"| {num_models} | {num_series(metrics)} | {len(text) / 1024:.0f} | {ms} |")


if __name__ == "__main__":
    main()
