"""What is told of steps."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.device import DeviceMetrics


def test_a_step_is_a_batch_a_slice_and_a_prediction() -> None:
    registry = CollectorRegistry()
    metrics = DeviceMetrics(registry)
    metrics.step("main", 3, predicted_s=0.004, took_s=0.008)
    metrics.step("main", 1, predicted_s=0.0, took_s=0.016)  # nothing was predicted: there is no ratio

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"mfalcon_{name}", {"model": "main"} | labels)

    assert (value("batch_jobs_count"), value("batch_jobs_sum")) == (2, 4)
    assert (value("slice_seconds_count"), value("slice_seconds_sum")) == (2, 0.024)
    assert (value("cost_ratio_count"), value("cost_ratio_sum")) == (1, 2)
    assert (value("batch_jobs_bucket", le="2.0"), value("slice_seconds_bucket", le="0.008")) == (1, 1)
