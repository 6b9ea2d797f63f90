"""An engine put together of its owners: the server's histories, the device, and a ranker for each model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from mfalcon.capture.seen import Captures
from mfalcon.engine.catalog import Catalog
from mfalcon.engine.device import SLICE_S, Device
from mfalcon.engine.engine import Engine
from mfalcon.engine.ensemble import EnsembleOptions
from mfalcon.engine.histories import Histories, HistoryOptions
from mfalcon.engine.ranker import LoadedRanker, RankerOptions
from mfalcon.engine.reload import ReloadOptions
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.rerank.language_model import LanguageModelOptions


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """threads: cores of the device thread. queue_size: jobs that may wait. slice_s: seconds that a step of the device
    is predicted to take at most. ranker: of every model, whose budgets they share.
    """

    threads: int
    queue_size: int = 1_024
    slice_s: float = SLICE_S
    ranker: RankerOptions = field(default_factory=RankerOptions)
    histories: HistoryOptions = field(default_factory=HistoryOptions)
    reload: ReloadOptions = field(default_factory=ReloadOptions)


def compose(checkpoint: Checkpoint, config: EngineConfig, metrics: ServerMetrics | None = None) -> Engine:
    """An engine of one model. Raises ConfigError."""
    return compose_all([(checkpoint, config.ranker)], config, metrics)


def compose_all(
    models: Sequence[tuple[Checkpoint, RankerOptions]],
    config: EngineConfig,
    metrics: ServerMetrics | None = None,
    ensembles: Sequence[EnsembleOptions] = (),
    llm: LanguageModelOptions | None = None,
    capture: Captures | None = None,
) -> Engine:
    """An engine of several models on one device and one event log; the first one is the default. Raises ConfigError."""
    metrics = metrics or ServerMetrics()
    torch_device = models[0][0].model.device
    device = Device(torch_device, config.threads, config.queue_size, metrics.device, config.slice_s)
    histories = Histories(config.histories, metrics.states, metrics.counters, metrics.logs)
    rankers = [LoadedRanker(checkpoint, options, device, histories, metrics.states) for checkpoint, options in models]
    for ranker in rankers:
        metrics.states.serves(ranker.info)
    return Engine(histories, device, Catalog(rankers), metrics, config.reload, ensembles, llm, capture)


def shared(options: RankerOptions, share: float) -> RankerOptions:
    """A model's part of the budgets that the models of a server share."""
    return replace(
        options,
        kv_budget_bytes=int(options.kv_budget_bytes * share),
        device_budget_bytes=int(options.device_budget_bytes * share),
        write_behind_bytes=int(options.write_behind_bytes * share),
    )
