"""What a server says of itself when it starts, in lines of its log."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mfalcon import __version__
from mfalcon.types import ModelInfo
from server.addresses import Addresses
from server.config import ServerConfig
from server.settings.tls import is_loopback

_LONGEST_NOTE = 500


def of_settings(config: ServerConfig, redis: str | None, addresses: Addresses) -> Iterator[str]:
    """What is known before anything is loaded. redis: its URL without credentials."""
    yield f"mfalcon {__version__} loads {', '.join(str(model.checkpoint) for model in config.served)}"
    behind = f", {config.frontends} front-ends" if config.frontends else ""
    metrics = f", metrics {addresses.metrics}" if addresses.metrics else ""
    yield f"addresses: grpc {addresses.grpc}, http {addresses.http}{metrics}{behind}"
    yield f"access: {access_of(config)}"
    yield (
        f"limits: {config.max_candidates} candidates, {config.max_recent_events} recent events, "
        f"{config.max_events_per_append} events an append, {config.max_message_bytes} bytes a message, "
        f"{config.request_timeout_ms} ms a request, {config.queue_size} requests in the queue"
    )
    match config.log_place:
        case "memory":
            yield "event log: in this process, a restart forgets it"
        case "file":
            survives = "the machine's end" if config.durability == "fsync" else "this process's end"
            yield f"event log: in {config.log_dir}; what is acknowledged survives {survives}"
        case "redis":
            kept = {"memory": "as Redis does by itself", "fsync": "on its disk", "replica": "by a replica of it"}
            yield (
                f"event log: in Redis, what is acknowledged is kept {kept[config.durability]}; "
                f"{config.log_unreachable} while it cannot be asked"
            )
    if redis is None:
        yield "redis: none"
    else:
        yield (
            f"redis: {redis}, prefix {config.redis_prefix}, states as {config.redis_state_dtype}, "
            f"{config.write_behind_mb} MiB to be written"
        )


def access_of(config: ServerConfig) -> str:
    """How locked the server is."""
    if not config.has_tls:
        wire = "in clear"
    elif config.tls_client_ca_file is None:
        wire = "TLS"
    else:
        wire = f"TLS, clients' certificates {config.tls_client_certs}"
    known_by = [
        name
        for name, file in (("tokens", config.tokens_file), ("JWTs", config.jwks_file))
        if file is not None  # certificates name callers beside tokens, as the file of callers says
    ]
    if known_by:
        return f"{wire}; callers are known by {', '.join(known_by)}"
    if config.asks_who_calls:
        return f"{wire}; whoever has one may rank, append, read and delete"
    hosts = (config.grpc_host, config.http_host)
    whose = "everybody on this machine" if all(map(is_loopback, hosts)) else "EVERYBODY who reaches a port (insecure)"
    return f"{wire}; {whose} may rank, append, read and delete"


def note_of(checkpoint: Path) -> str | None:
    """What a checkpoint's maker wants its operator to know: the first line of the file NOTE beside its weights."""
    try:
        with (checkpoint / "NOTE").open(encoding="utf-8", errors="replace") as file:
            line = file.readline(_LONGEST_NOTE).strip()
    except OSError:
        return None
    return "".join(letter if letter.isprintable() else "?" for letter in line) or None


def of_ensemble(info: ModelInfo) -> str:
    """What is known of an ensemble before a replica is asked."""
    assert info.ensemble is not None
    members = ", ".join(
        f"{member.model}{f' at {member.address}' if member.address else ''} (weight {member.weight:g})"
        for member in info.ensemble.members
    )
    return (
        f"ensemble {info.name}: mean {info.ensemble.merge} of {members}; {info.ensemble.min_members} within "
        f"{info.ensemble.budget_ms} ms"
    )


def of_model(info: ModelInfo, unavailable: Sequence[str]) -> Iterator[str]:
    """What is known of a model that has been loaded. unavailable: what would compute it faster, and why it does not."""
    yield (
        f"model {info.name}: version {info.version}, architecture {info.architecture}, tasks {', '.join(info.tasks)}, "
        f"window of {info.max_history} events"
    )
    why_not = "".join(f"; not by {why}" for why in unavailable)
    yield f"model {info.name}: computed by {info.backend}{why_not}"
