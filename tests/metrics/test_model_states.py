"""Metrics of a model outlive its checkpoints."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.model_states import ModelAnswers, ModelStates
from mfalcon.metrics.states import StateMetrics
from mfalcon.types import CacheInfo, CacheSource


def test_totals_of_one_checkpoint_after_the_other_add_up() -> None:
    registry = CollectorRegistry()
    metrics = StateMetrics(registry)
    for totals in ((2, 2, 5), (0, 3)):  # the second checkpoint's cache begins at nothing
        states = ModelStates(metrics, "main")
        for total in totals:
            states.host_evicted.follow(total)
            states.answered(CacheInfo(CacheSource.HOST, 40, 1))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"mfalcon_{name}", {"model": "main"} | labels)

    assert value("host_evicted_total") == 8
    assert (value("state_lookups_total", source="host"), value("state_lookups_total", source="redis")) == (5, 0)
    assert (value("state_tokens_total", how="reused"), value("state_tokens_total", how="encoded")) == (200, 5)


def test_reloads_are_there_before_the_first_so_that_an_alert_on_an_increase_sees_it() -> None:
    registry = CollectorRegistry()
    ModelAnswers(StateMetrics(registry), "main")
    for result in ("swapped", "failed"):
        assert registry.get_sample_value("mfalcon_reloads_total", {"model": "main", "result": result}) == 0
