"""The figures of a server's processes, as it tells them on /metrics; needs the extra `loadtest`."""

import contextlib
import ssl
from collections.abc import AsyncIterator

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtest.load.watch import Ask, Sample
from loadtest.load.watched import DESCRIPTORS, MEMORY, QUEUE, STATES, THREADS, Figure
from mfalcon.errors import CallFailed

_TIMEOUT_S = 5.0
_MIB = 2.0**20
_FIGURES: dict[str, tuple[Figure, float]] = {
    # metric: the figure and how much of the metric is 1 of it; metrics of one figure are added up
    "process_resident_memory_bytes": (MEMORY, _MIB),
    "process_open_fds": (DESCRIPTORS, 1.0),
    "process_threads": (THREADS, 1.0),
    "mfalcon_host_bytes": (STATES, _MIB),
    "mfalcon_device_bytes": (STATES, _MIB),
    "mfalcon_queue_jobs": (QUEUE, 1.0),
}


@contextlib.asynccontextmanager
async def process_metrics(address: str, verify: ssl.SSLContext | bool = True) -> AsyncIterator[Ask]:
    """A connection to the server's HTTP, HOST:PORT or a URL, over which to ask for samples. verify: how TLS is spoken,
    where that is https.
    """
    url = address if "://" in address else f"http://{address}"
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, trust_env=False, verify=verify) as http:

        async def ask() -> Sample:
            try:
                reply = await http.get("/metrics")
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise CallFailed("UNAVAILABLE", f"{type(error).__name__}: {error}") from error
            if reply.status_code != httpx.codes.OK:
                raise CallFailed(f"HTTP_{reply.status_code}", "there are no metrics")
            try:
                return parsed(reply.text)
            except ValueError as error:
                raise CallFailed("OK", f"these are no metrics: {error}") from error

        yield ask


def parsed(text: str) -> Sample:
    """The figures in Prometheus' text. Lines of other metrics are not parsed, which would hold the driver up."""
    lines = (line for line in text.splitlines() if line.startswith(tuple(_FIGURES)))
    sample: dict[tuple[Figure, str], float] = {}
    for family in text_string_to_metric_families("\n".join(lines)):
        for name, labels, value, *_ in family.samples:
            if name in _FIGURES:
                figure, unit = _FIGURES[name]
                process = f"front-end {labels['frontend']}" if "frontend" in labels else "engine"
                key = figure, labels.get("model", process)
                sample[key] = sample.get(key, 0.0) + value / unit
    return sample
