"""`mfalcon inspect`: what a checkpoint is, and the memory that its users' states and logs take, here and in Redis."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from mfalcon.backends.choice import AUTO, choose
from mfalcon.backends.events import SPLIT
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.redis_parts import layout_of
from mfalcon.errors import ConfigError
from mfalcon.history.chain import CHAIN_BLOCK
from mfalcon.kvcache.chunk import HEADER_BYTES, PayloadDtype
from mfalcon.kvcache.state import KVShape
from mfalcon.models import checkpoint
from mfalcon.models.base import EventRanker, PrefixRanker, Ranker
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config_features import COUNTERS
from mfalcon.models.config_layers import ReachConfig
from mfalcon.models.din import Din
from mfalcon.models.table_size import TableSize, table_size
from mfalcon.train.description import reach_parts
from mfalcon.types import EVENT_DTYPE

_PAYLOADS = (PayloadDtype.FLOAT32, PayloadDtype.BFLOAT16, PayloadDtype.INT8)
_COMPUTE = {PayloadDtype.FLOAT32: torch.float32, PayloadDtype.BFLOAT16: torch.bfloat16}
_NUM_USERS = (10_000, 100_000, 1_000_000, 10_000_000)
_LOG_HEADER_BYTES = 80
_LOG_DEFAULTS = HistoryOptions()
"""How much of a history a server keeps."""

_KEY_CHARS = len("mfalcon:{") + 32 + len("}:log")
_CHUNK_KEY_CHARS = len("mfalcon:{") + 32 + len("}:kv:") + 16 + len(":9999")
_BOOKKEEPING_BYTES = 128
"""Of Redis for one key: its name's and value's headers and its places in the tables of keys and of expiry times."""


@dataclass(frozen=True, slots=True)
class StateSize:
    """Bytes of one user's KV state, by the type of its numbers. memory_*: None where a model cannot compute in it.

    redis_window_bytes: chunks of a full window, with their headers, names and what the allocator rounds up.
    """

    dtype: str
    memory_bytes_per_token: int | None
    memory_bytes_per_event: int | None
    memory_bytes_of_window: int | None
    payload_bytes_per_event: int
    events_per_chunk: int
    chunks_of_window: int
    redis_window_bytes: int


@dataclass(frozen=True, slots=True)
class LogSize:
    """Bytes of one user's event log as a value in Redis, which may hold twice as much ready for it to grow."""

    bytes_of_window: int
    most_events: int
    most_bytes: int


@dataclass(frozen=True, slots=True)
class Population:
    """Redis memory of so many users with full windows: states and, at their longest, logs."""

    num_users: int
    dtype: str
    states_bytes: int
    logs_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both."""
        return self.states_bytes + self.logs_bytes


@dataclass(frozen=True, slots=True)
class BackendHere:
    """What would compute on this machine in a dtype, and why not what is better."""

    dtype: str
    backend: str
    unavailable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that `mfalcon inspect` knows.

    num_item_events: of all items in training; None where nobody counted. table: of an open vocabulary. num_layers to
    reach: of a model that encodes a history; reach says what each layer sees, None where it sees all, and is empty
    where all do. plain_flops: of one that does not, what one forward for one candidate costs with nothing shared.
    """

    name: str
    architecture: str
    version: str
    fingerprint: str
    num_parameters: int
    num_items: int
    num_item_events: int | None
    table: TableSize | None
    dim: int
    max_history: int
    window_chunk: int
    encodes_prefix: bool
    counters: tuple[str, ...]
    counters_max_events: int
    prefix_stable: bool
    why_no_states: str
    num_layers: int | None
    num_heads: int | None
    qk_dim: int | None
    v_dim: int | None
    tokens_per_event: int | None
    reach: tuple[ReachConfig | None, ...]
    plain_flops: int | None
    backends: tuple[BackendHere, ...]
    states: tuple[StateSize, ...]
    log: LogSize
    populations: tuple[Population, ...]


def inspect(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.")],
    log_max_events: Annotated[
        int, typer.Option(min=1, help="Events of a user that a log keeps for certain: the server's setting.")
    ] = _LOG_DEFAULTS.log_max_events,
    ids: Annotated[
        int | None,
        typer.Option(
            min=0, help="Price vectors of an open vocabulary for so many ids.", show_default="those of its training"
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show a checkpoint's model and how much memory its users take."""
    found = measure(checkpoint.load(path), log_max_events, ids)
    if json_output:
        totals = [dataclasses.asdict(row) | {"total_bytes": row.total_bytes} for row in found.populations]
        reach = [None if of is None else of.model_dump() for of in found.reach]
        print_json(dataclasses.asdict(found) | {"populations": totals, "reach": reach})
        return
    console = Console(highlight=False)
    tables = [_model_table(found), *([_states_table(found)] if found.states else []), _users_table(found)]
    for table in tables:
        console.print(table)
    console.print(
        f"A log takes {_LOG_HEADER_BYTES} bytes and {EVENT_DTYPE.itemsize} an event: "
        f"{_size(found.log.bytes_of_window)} for a full window. With --log-max-events {log_max_events} it is cut "
        f"before {found.log.most_events:,} events, {_size(found.log.most_bytes)}; Redis may hold twice as much ready "
        "for one that grows."
    )
    if found.states:
        console.print(
            "Redis holds states in the dtype that computes unless --redis-state-dtype says bfloat16 or int8, which "
            "move scores. Redis figures: chunks with headers, names and what the allocator (jemalloc) rounds up."
        )


def measure(
    loaded: Checkpoint, log_max_events: int = _LOG_DEFAULTS.log_max_events, num_ids: int | None = None
) -> Inspection:
    """Count it all from the shapes. ConfigError if a server that keeps so many events would not serve the model."""
    model, config = loaded.model, loaded.model.config
    prefix = model if isinstance(model, PrefixRanker) else None
    shape = prefix.kv_shape() if prefix is not None else None
    states = tuple(_state_size(loaded, prefix, dtype) for dtype in _PAYLOADS) if prefix is not None else ()
    if config.max_history > log_max_events:
        raise ConfigError(f"log_max_events: got {log_max_events}, must be at least the window, {config.max_history}")
    if config.counters is not None and config.counters.max_events > log_max_events:
        least = f"{config.counters.max_events}, the events that count for a user in the counters"
        raise ConfigError(f"log_max_events: got {log_max_events}, must be at least {least}")
    log = log_size(config.max_history, log_max_events)
    return Inspection(
        name=config.name,
        architecture=config.architecture,
        version=loaded.fingerprint[:12],
        fingerprint=loaded.fingerprint,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_items=len(loaded.items.item_id),
        num_item_events=None if loaded.items.num_events is None else int(loaded.items.num_events.sum()),
        table=_table_size(loaded, num_ids),
        dim=config.dim,
        max_history=config.max_history,
        window_chunk=config.window_chunk,
        encodes_prefix=model.encodes_prefix,
        counters=COUNTERS if config.counters is not None else (),
        counters_max_events=config.counters.max_events if config.counters is not None else 0,
        prefix_stable=model.prefix_stable,
        why_no_states="" if model.prefix_stable else model.why_no_states,
        num_layers=shape.num_layers if shape is not None else None,
        num_heads=shape.num_heads if shape is not None else None,
        qk_dim=shape.qk_dim if shape is not None else None,
        v_dim=shape.v_dim if shape is not None else None,
        tokens_per_event=prefix.tokens_per_event if prefix is not None else None,
        reach=config.reach or (),
        plain_flops=model.network.flops() if isinstance(model, Din) else None,
        backends=tuple(_backend_here(model, dtype) for dtype in (torch.float32, torch.bfloat16)),
        states=states,
        log=log,
        populations=tuple(_population(users, state, log) for users in _NUM_USERS for state in (states or (None,))),
    )


def _table_size(loaded: Checkpoint, num_ids: int | None) -> TableSize | None:
    """Of an open vocabulary, by default for the ids that it was trained on. Raises ConfigError."""
    shared = loaded.model.config.shared
    if shared is None:
        if num_ids is not None:
            raise ConfigError(
                f"--ids: has no effect on a table, which has a row for each of {len(loaded.items.item_id)}"
            )
        return None
    known = shared.num_ids if shared.num_ids is not None else len(loaded.items.item_id)
    return table_size(shared, loaded.model.config.dim, known if num_ids is None else num_ids)


def _backend_here(model: Ranker, dtype: torch.dtype) -> BackendHere:
    choice = choose(AUTO, torch.device("cpu"), dtype)
    fused = choice.kernel is not None and (dtype == torch.float32 or model.has_layers)
    if isinstance(model, EventRanker) and not fused:
        return BackendHere(str(dtype).removeprefix("torch."), SPLIT, choice.unavailable)
    return BackendHere(str(dtype).removeprefix("torch."), choice.name, choice.unavailable)


def _state_size(loaded: Checkpoint, model: PrefixRanker, dtype: PayloadDtype) -> StateSize:
    window = model.config.max_history
    layout = layout_of(model, loaded.fingerprint, dtype)
    per_token = _in_memory(model.kv_shape(), dtype)
    per_event = None if per_token is None else per_token * model.tokens_per_event
    chunks = -(-window // layout.events_per_chunk)
    rest = window - (chunks - 1) * layout.events_per_chunk
    return StateSize(
        dtype=dtype.name.lower(),
        memory_bytes_per_token=per_token,
        memory_bytes_per_event=per_event,
        memory_bytes_of_window=None if per_event is None else per_event * window,
        payload_bytes_per_event=layout.payload_bytes(1),
        events_per_chunk=layout.events_per_chunk,
        chunks_of_window=chunks,
        redis_window_bytes=sum(
            value_bytes(layout.payload_bytes(events) + HEADER_BYTES, _CHUNK_KEY_CHARS)
            for events in [*[layout.events_per_chunk] * (chunks - 1), rest]
        ),
    )


def _in_memory(shape: KVShape, dtype: PayloadDtype) -> int | None:
    compute = _COMPUTE.get(dtype)
    return None if compute is None else dataclasses.replace(shape, dtype=compute).bytes_per_token()


def log_size(max_history: int, log_max_events: int) -> LogSize:
    """Of a model's window, and of the longest log on a server that keeps so many events."""
    # A log begins less than a block before what is kept, and is cut when it begins `slack` events before that.
    most = log_max_events + _LOG_DEFAULTS.log_slack + CHAIN_BLOCK
    event = EVENT_DTYPE.itemsize
    return LogSize(_LOG_HEADER_BYTES + event * max_history, most, _LOG_HEADER_BYTES + event * most)


def _population(num_users: int, state: StateSize | None, log: LogSize) -> Population:
    logs = num_users * value_bytes(log.most_bytes, _KEY_CHARS)
    if state is None:
        return Population(num_users, "no states", 0, logs)
    return Population(num_users, state.dtype, num_users * state.redis_window_bytes, logs)


def value_bytes(num_bytes: int, key_chars: int) -> int:
    """Memory of one key and its value in Redis."""
    return allocated(num_bytes) + allocated(key_chars) + _BOOKKEEPING_BYTES


def allocated(num_bytes: int) -> int:
    """What jemalloc gives for so many bytes: four sizes to each doubling, so at most a quarter more."""
    if num_bytes <= 128:
        return -(-num_bytes // 16) * 16
    step = 1 << ((num_bytes - 1).bit_length() - 3)
    return -(-num_bytes // step) * step


def _model_table(found: Inspection) -> Table:
    table = Table(title=found.name, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("architecture", found.architecture),
        ("version", f"{found.version} (fingerprint {found.fingerprint})"),
        ("parameters", f"{found.num_parameters:,}"),
        ("items", f"{found.num_items:,}"),
        (
            "events of items",
            "not counted: no tail_weight"
            if found.num_item_events is None
            else f"{found.num_item_events:,} in training",
        ),
        *_table(found.table),
        *_kind(found),
        *(
            [("counters", f"{', '.join(found.counters)}; of the newest {found.counters_max_events:,} events of a user")]
            if found.counters
            else []
        ),
        *(
            (f"{here.dtype} computed by", "; ".join((here.backend, *(f"not {why}" for why in here.unavailable))))
            for here in found.backends
        ),
    ):
        table.add_row(name, value)
    return table


def _table(size: TableSize | None) -> list[tuple[str, str]]:
    """Rows of an open vocabulary."""
    if size is None:
        return []
    return [
        ("vectors of ids", f"of any id, in {_size(size.array_bytes)}: no item is unknown"),
        (
            "virtual table",
            f"{size.num_ids:,} ids x {size.dim} = {size.virtual_parameters:,} parameters, {_size(size.virtual_bytes)}; "
            f"{size.compression:,.1f} to 1",
        ),
        (
            "of these ids",
            f"{size.vector_shared:.2%} have the vector of another, {size.block_shared:.2%} a block that begins where "
            f"another's does; any two texts have one hash with odds of {size.two_hashes_equal:.1e}",
        ),
    ]


def _kind(found: Inspection) -> list[tuple[str, str]]:
    """Rows that a model has by its kind."""
    window = f"{found.max_history:,} events, moved by {found.window_chunk:,}"
    if not found.encodes_prefix:
        return [
            ("dim", f"{found.dim}"),
            ("window", f"the last {found.max_history:,} events, read with each request"),
            ("states", f"none: {found.why_no_states}, nothing is kept of a user but the log"),
            *([("FLOPs of a candidate", f"{found.plain_flops:,} with nothing shared")] if found.plain_flops else []),
        ]
    return [
        ("layers, heads", f"{found.num_layers}, {found.num_heads}"),
        ("dim, qk, v", f"{found.dim}, {found.qk_dim}, {found.v_dim}"),
        ("window", window),
        *([("reach", "; ".join(reach_parts(found.reach)))] if found.reach else []),
        ("tokens per event", f"{found.tokens_per_event}"),
        ("states outlive requests", "yes" if found.prefix_stable else "no: nothing is shared or kept"),
    ]


def _states_table(found: Inspection) -> Table:
    table = Table(title="KV state of one user", title_justify="left")
    for name in ("", "token", "event", "full window", "event in Redis", "chunks", "of events", "window in Redis"):
        table.add_column(name, justify="right" if name else "left", no_wrap=not name)
    for row in found.states:
        memory = (row.memory_bytes_per_token, row.memory_bytes_per_event, row.memory_bytes_of_window)
        cells = ["-" if value is None else _size(value) for value in memory]
        redis = (_size(row.payload_bytes_per_event), str(row.chunks_of_window), str(row.events_per_chunk))
        table.add_row(row.dtype, *cells, *redis, _size(row.redis_window_bytes))
    return table


def _users_table(found: Inspection) -> Table:
    table = Table(title="Redis memory: states of full windows and the longest logs", title_justify="left")
    dtypes: Sequence[str] = [row.dtype for row in found.populations if row.num_users == _NUM_USERS[0]]
    for name in ("users", *dtypes, "of it logs"):
        table.add_column(name, justify="right")
    for users in _NUM_USERS:
        rows = [row for row in found.populations if row.num_users == users]
        table.add_row(f"{users:,}", *(_size(row.total_bytes) for row in rows), _size(rows[0].logs_bytes))
    return table


def _size(num_bytes: int) -> str:
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:,.0f} {units[0]}" if units[0] == "B" else f"{value:,.1f} {units[0]}"
