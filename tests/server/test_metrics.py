"""What /metrics says of a real engine."""

import torch

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.ranker import RankerOptions
from mfalcon.metrics import StateMetrics
from tests.server.harness import serving_engine
from tests.small import small_checkpoint


async def test_labels_of_the_backend_say_what_they_are_named() -> None:
    metrics = StateMetrics()
    config = EngineConfig(threads=1, ranker=RankerOptions(name="small", backend="reference", microbatch=8))
    engine = compose(small_checkpoint(dtype=torch.float32), config, metrics)
    engine.wait_ready()
    async with serving_engine(engine, metrics.registry) as running:
        scraped = (await running.http.get("/metrics")).text
    assert 'mfalcon_backend{backend="reference",device="cpu",dtype="float32",model="small"} 1.0' in scraped
