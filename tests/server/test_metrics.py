"""What /metrics says of a real engine."""

import torch

from mfalcon.engine.engine import Engine, EngineConfig
from mfalcon.metrics import StateMetrics
from tests.server.harness import serving_engine
from tests.small import small_checkpoint


async def test_labels_of_the_backend_say_what_they_are_named() -> None:
    metrics = StateMetrics()
    engine = Engine(
        small_checkpoint(dtype=torch.float32), EngineConfig(threads=1, backend="reference", microbatch=8), metrics
    )
    engine.wait_ready()
    async with serving_engine(engine, metrics.registry) as running:
        scraped = (await running.http.get("/metrics")).text
    assert 'mfalcon_backend{backend="reference",device="cpu",dtype="float32"} 1.0' in scraped
