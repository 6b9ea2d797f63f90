"""What /metrics says of a real engine."""

import torch
from prometheus_client.parser import text_string_to_metric_families

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.ranker import RankerOptions
from mfalcon.metrics.server_metrics import ServerMetrics
from tests.server.harness import serving, serving_engine
from tests.small import small_checkpoint


async def test_labels_of_the_backend_say_what_they_are_named() -> None:
    metrics = ServerMetrics()
    config = EngineConfig(threads=1, ranker=RankerOptions(name="small", backend="reference", microbatch=8))
    engine = compose(small_checkpoint(dtype=torch.float32), config, metrics)
    engine.wait_ready()
    async with serving_engine(engine, metrics) as running:
        scraped = (await running.http.get("/metrics")).text
    assert 'mfalcon_backend{backend="reference",device="cpu",dtype="float32",model="small"} 1.0' in scraped


async def test_the_exposition_is_what_prometheus_parses_without_created_series() -> None:
    async with serving() as running:
        scraped = await running.http.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(scraped.text)}
    assert not [name for name in families if name.endswith("_created")]
    process = {"process_resident_memory_bytes", "process_open_fds", "process_threads", "python_info"}
    assert process | {"mfalcon_loop_lag_seconds", "mfalcon_queue_jobs"} <= families.keys()
