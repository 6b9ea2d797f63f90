"""What an engine is made with, as the settings say."""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from mfalcon.backends.select import device_named, free_bytes
from mfalcon.capture.capture import Capture, CaptureOptions
from mfalcon.capture.files import FileLimits
from mfalcon.cgroup import Cgroups
from mfalcon.cores import owned_cores
from mfalcon.engine.compose import shared
from mfalcon.engine.ensemble import EnsembleOptions, MemberOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.errors import ConfigError
from mfalcon.history.budget import LogBudget, budget_of_directory
from mfalcon.history.file_log import FileLogOptions
from mfalcon.history.redis_log import LogOptions
from mfalcon.items.live import LiveOptions
from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.kvcache.item_rows import RowPolicy
from mfalcon.memory import available_bytes, budget_of_states
from mfalcon.merging.merge import Calibration
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.rerank.language_model import LanguageModelOptions
from server import arrivals
from server.config import ServerConfig
from server.pseudonym import user_tag
from server.remote_replica import RemoteReplica, tls_to
from server.settings.models import EnsembleConfig

logger = logging.getLogger(__name__)

MIN_SECRET_BYTES = 16
MAX_KEY_CHARS = 4_096
USUAL_STATES_MB = 1_024
"""Memory for KV states where neither the operator nor a container says how much."""
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def model_options(config: ServerConfig, device: torch.device) -> list[RankerOptions]:
    """Those of every served model, the default one first. Where nothing is said of a GPU's memory, what is free there
    now is shared: after all weights have been loaded, and before there is any pool.
    """
    options = RankerOptions(
        backend=config.backend,
        kv_dtype=config.kv_dtype,
        microbatch=None if config.microbatch == "auto" else config.microbatch,
        kv_budget_bytes=state_bytes(config),
        device_budget_bytes=config.device_budget_mb << 20 or free_bytes(device),
        write_behind_bytes=config.write_behind_mb << 20,
        live=LiveOptions(RowPolicy(config.items_policy, config.items_keep_seconds), config.items_most_new),
        max_candidates=config.max_candidates,
    )
    return [dataclasses.replace(shared(options, model.share or 1.0), name=model.name) for model in config.served]


def ensemble_options(config: EnsembleConfig) -> EnsembleOptions:
    """One of [[ensembles]], with a client for each member that is elsewhere."""
    return EnsembleOptions(
        name=config.name,
        members=tuple(
            MemberOptions(
                member.model,
                member.weight,
                None
                if member.address is None
                else RemoteReplica(member.address, member.model, member.token_file, tls_to(member)),
            )
            for member in config.members
        ),
        merge=config.merge,
        budget_s=config.merge_budget_ms / 1000,
        min_members=config.min_members,
        calibration={task.task: Calibration(task.scale, task.shift) for task in config.calibration},
    )


def state_bytes(config: ServerConfig, cgroups: Cgroups = Cgroups()) -> int:  # noqa: B008 (it is frozen)
    """Memory of the host for the KV states of all models: as asked, or what the container leaves now."""
    if config.kv_budget_mb != "auto":
        return config.kv_budget_mb << 20
    buffers = config.write_behind_mb + config.log_cache_mb if config.redis_url else 0
    budget = budget_of_states(buffers << 20, USUAL_STATES_MB << 20, cgroups)
    logger.info("memory for KV states: %d MiB, threads: %d", budget >> 20, config.threads or owned_cores())
    return budget


def file_options(config: ServerConfig) -> FileLogOptions | None:
    """Of the event log in a file; None where it is elsewhere."""
    if config.log_place != "file":
        return None
    assert config.log_dir is not None and config.durability != "replica"
    return FileLogOptions(
        config.log_dir,
        config.durability,
        config.log_cache_mb << 20,
        on_damage=config.damaged_log,
        quarantine_s=config.quarantine_days * 86_400,
    )


def capture_of(config: ServerConfig, metrics: ServerMetrics) -> Capture | None:
    """What captures a sample of the requests; None where none are. ConfigError for a directory that cannot be used."""
    if config.capture_dir is None:
        return None
    options = CaptureOptions(
        config.capture_dir,
        user_tag,
        config.capture_sample,
        FileLimits(config.capture_mb << 20, config.capture_file_mb << 20, config.capture_max_age_days * 86_400),
        scores=config.capture_scores,
        caller=lambda: arrivals.current().caller,
        one_life=config.log_place == "redis",
    )
    return Capture(options, metrics.captures)


def log_budget(config: ServerConfig, cgroups: Cgroups = Cgroups()) -> LogBudget:  # noqa: B008 (it is frozen)
    """What a log in this process or in a file may hold: as asked, or what the memory or the disk leaves now."""
    if config.log_place == "redis":
        return LogBudget()
    if config.log_budget_mb != "auto":
        most = config.log_budget_mb << 20
    elif config.log_dir is None:
        most = available_bytes(cgroups) // 4
    else:
        most = budget_of_directory(config.log_dir)
    if most:
        what = "memory" if config.log_place == "memory" else "disk"
        logger.info("%s for histories: %d MiB, then new users: %s", what, most >> 20, config.log_when_full)
    return LogBudget(most, config.log_max_users, config.log_max_idle_s, config.log_when_full)


def loader(config: ServerConfig) -> Callable[[Path], Checkpoint]:
    """What reads a checkpoint as this server computes."""
    dtype, device = DTYPES[config.dtype], str(device_named(config.device))
    return lambda directory: checkpoint.load(directory, dtype, device)


def redis_options(config: ServerConfig) -> RedisOptions | None:
    """What the engine must know of Redis; None without one."""
    if config.redis_url is None:
        return None
    url = config.redis_url.get_secret_value()
    secret = read_secret(config.redis_secret_file)
    former = read_secret(config.redis_former_secret_file, "redis_former_secret_file")
    return RedisOptions(
        client=RedisSettings(
            url=url,
            timeout_s=config.redis_timeout_ms / 1000,
            write_timeout_s=config.redis_write_timeout_ms / 1000,
            max_connections=config.redis_connections,
        ),
        prefix=config.redis_prefix,
        holds_log=config.log_place == "redis",
        log=LogOptions(
            cache_bytes=config.log_cache_mb << 20,
            serve_stale=config.log_unreachable == "stale",
            on_damage=config.damaged_log,
            quarantine_s=config.quarantine_days * 86_400,
            secret=secret,
            former_secrets=() if former is None else (former,),
            must_be_signed=config.require_signed_logs,
            max_age_s=config.log_max_age_days * 86_400,
            durability=config.durability,
        ),
        state_dtype=None if config.redis_state_dtype == "auto" else PayloadDtype.from_name(config.redis_state_dtype),
        ttl_s=config.redis_state_ttl_s,
        budget_bytes=config.redis_budget_mb << 20,
        secret=secret,
    )


def language_model_options(config: ServerConfig) -> LanguageModelOptions | None:
    """The language model that may rerank; None without one. ConfigError for a key that is none."""
    if config.llm_url is None:
        return None
    assert config.llm_model is not None
    key, path = None, config.llm_key_file
    if path is not None:
        try:
            key = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"llm_key_file: cannot read {path}: {why}") from error
        if not key.isascii() or not key.isprintable() or not 1 <= len(key) <= MAX_KEY_CHARS:
            raise ConfigError(
                f"llm_key_file: got {len(key)} characters, must be 1 to {MAX_KEY_CHARS} printable ones of ASCII"
            )
    seconds = config.llm_timeout_ms / 1000
    return LanguageModelOptions(config.llm_url, config.llm_model, key, seconds, config.llm_concurrency)


def read_secret(path: Path | None, setting: str = "redis_secret_file") -> bytes | None:
    """What signs logs and chunks. ConfigError if the file cannot be read or holds too little."""
    if path is None:
        return None
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"{setting}: got {len(secret)} bytes, must be at least {MIN_SECRET_BYTES}")
    return secret
