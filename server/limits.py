"""What a request may hold. Every value of a caller is checked here, once, whichever transport it came by.

Types (an int64, a float32, UTF-8) are the transports' business, and so is to count before they convert; whatever passes
them meets the same limits here. Each refusal names the field, the value and the limit. What depends on the stored
history (`expected_len`, `expected_version`, events older than the log) is checked where the log is.
"""

import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

import numpy as np

from mfalcon.clock import is_plausible, unit_of
from mfalcon.errors import InvalidInput, UnknownModel
from mfalcon.types import (
    LATE_EVENTS,
    MAX_APPEND_ID_BYTES,
    MAX_TIME_MS,
    RERANK_METHODS,
    RETURNS,
    VERSION_BYTES,
    Append,
    ContextFeatureInfo,
    DenseFeatures,
    Events,
    HistoryRequest,
    LateEvents,
    ModelInfo,
    RankRequest,
    Rerank,
    UserAppend,
    first_late,
)

MAX_TIMEOUT_MS = 3_600_000
"""Nobody waits longer for an answer, whatever setting or caller says."""
MAX_CONTEXT_ENTRIES = 256
"""A model reads no more context features."""
MAX_RERANK_DEPTH = 1_000
"""A top is reranked in milliseconds."""
MAX_LLM_DEPTH = 100
"""A language model orders few candidates in seconds, and makes mistakes with many."""
MAX_CONDITIONS = 1_024
"""Of a request for interests."""
MAX_TOP_ITEMS = 1_000
"""Nearest items of a condition."""
MAX_NEAREST = 65_536
"""Of all conditions of a request together: a megabyte."""
RANKED_TOGETHER = 4
"""Times the most candidates of a request, what all ranks of a batch may have."""
MAX_DENSE_FEATURES = 256
"""A model reads no more dense features."""
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that are settings of the server; the others are properties of the model."""

    max_candidates: int
    max_events_per_append: int
    max_appends_per_batch: int
    max_recent_events: int
    max_events_per_page: int
    max_user_id_bytes: int
    request_timeout_ms: int
    late_events: LateEvents = "reject"
    max_ranks_per_batch: int = 256
    max_clock_skew_ms: int = 0
    """How far in the future of this machine's clock a time may lie; 0 for any."""


def check_user_id(user_id: str, max_bytes: int) -> None:
    """1 to `max_bytes` bytes of UTF-8, no control characters."""
    limit = f"1 to {max_bytes} bytes of UTF-8"
    try:
        num_bytes = len(user_id.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput("user_id", user_id, limit) from error
    if num_bytes == 0:
        raise InvalidInput("user_id", user_id, limit)
    if num_bytes > max_bytes:
        raise InvalidInput("user_id", num_bytes, limit)
    if CONTROL_CHARACTER.search(user_id):
        raise InvalidInput("user_id", user_id, "free of control characters")


def check_model(model: str, served: Sequence[ModelInfo]) -> ModelInfo:
    """The model of a served name; the first one for no name."""
    for info in served:
        if model in ("", info.name):
            return info
    names = ", ".join(repr(info.name) for info in served)
    raise UnknownModel(f"model: got {model[:80]!r}, must be {names} or empty")


def check_ranks(info: ModelInfo) -> None:
    """A model that scores items."""
    if info.conditions:
        raise InvalidInput("model", info.name, "a model that ranks items: this one has conditions, ask it by Interests")


def check_asks(model: str, served: Sequence[ModelInfo]) -> ModelInfo:
    """The model of a served name that has conditions; the first that has any for no name."""
    with_conditions = [info for info in served if info.conditions]
    if not model and with_conditions:
        return with_conditions[0]
    info = check_model(model, served)
    if not info.conditions:
        limit = "a model that has conditions (mfalcon train --model lum): this one ranks items"
        raise InvalidInput("model", info.name, limit)
    return info


def check_num_conditions(conditions: Sized, field: str = "conditions") -> None:
    """At most `MAX_CONDITIONS`."""
    if len(conditions) > MAX_CONDITIONS:
        raise InvalidInput(field, len(conditions), f"at most {MAX_CONDITIONS} conditions")


def check_conditions(conditions: Sequence[str], info: ModelInfo, field: str = "conditions") -> None:
    """Names of the model's, in any number up to `MAX_CONDITIONS`."""
    check_num_conditions(conditions, field)
    known = set(info.conditions)
    for at, name in enumerate(conditions):
        if name not in known:
            some = ", ".join(map(repr, info.conditions[:3])) + (", ..." if len(known) > 3 else "")
            raise InvalidInput(f"{field}[{at}]", name[:80], f"one of the model's {len(known)} conditions ({some})")


def check_top_items(top_items: int, num_conditions: int) -> None:
    """At most `MAX_TOP_ITEMS` of each, and `MAX_NEAREST` in all."""
    most = min(MAX_TOP_ITEMS, MAX_NEAREST // max(1, num_conditions))
    if not 0 <= top_items <= most:
        raise InvalidInput("top_items", top_items, f"0 to {most} for {num_conditions} conditions")


def check_retrieve(request: RankRequest, info: ModelInfo, max_candidates: int) -> None:
    """Conditions of the model that is asked, a number of candidates, and nothing that needs to know them."""
    wish = request.retrieve
    assert wish is not None
    if len(request.candidates):
        raise InvalidInput("candidates", len(request.candidates), "none with retrieve")
    if request.dense.names:
        raise InvalidInput("features.names", request.dense.names[0], "absent with retrieve")
    if not wish.conditions:
        raise InvalidInput("retrieve.conditions", 0, f"1 to {MAX_CONDITIONS} conditions")
    check_conditions(wish.conditions, info, "retrieve.conditions")
    most = min(max_candidates, MAX_TOP_ITEMS, MAX_NEAREST // len(wish.conditions))
    if not 1 <= wish.num_items <= most:
        raise InvalidInput("retrieve.k", wish.num_items, f"1 to {most} for {len(wish.conditions)} conditions")


def check_candidates(candidates: Sized, max_candidates: int) -> None:
    """1 to `max_candidates` of them; any id is legal."""
    if not 1 <= len(candidates) <= max_candidates:
        raise InvalidInput("candidates", len(candidates), f"1 to {max_candidates} candidates")


def check_returns(request: RankRequest) -> None:
    """One of `RETURNS`; a top that is returned alone has something in it."""
    if request.returns not in RETURNS:
        raise InvalidInput("return", request.returns, f"{', '.join(RETURNS)} or empty")
    if request.returns == "top" and not request.top_k:
        raise InvalidInput("top_k", 0, "at least 1 where the top alone is returned")


def check_streams(request: RankRequest) -> None:
    """Candidates that the caller knows, and all of their scores."""
    if request.retrieve is not None:
        raise InvalidInput("retrieve", request.retrieve.model, "absent in a stream: what is proposed is few items")
    if request.returns == "top":
        raise InvalidInput("return", "top", "both, scores or empty in a stream")


def check_num_items(item_ids: Sized, max_items: int) -> None:
    """At most `max_items` of them; any id is legal."""
    if len(item_ids) > max_items:
        raise InvalidInput("item_ids", len(item_ids), f"at most {max_items} items")


def check_request_time(request_time_ms: int, max_clock_skew_ms: int = 0) -> None:
    """0 (now) to `MAX_TIME_MS`, no number of seconds, and not further in the future than that if it is not 0."""
    if not 0 <= request_time_ms <= MAX_TIME_MS:
        limit = f"0 to {MAX_TIME_MS} (0 is now)"
        raise InvalidInput("request_time_ms", request_time_ms, limit + unit_of(request_time_ms))
    if not is_plausible(np.array(request_time_ms), max_clock_skew_ms):
        raise _implausible("request_time_ms", request_time_ms, max_clock_skew_ms)


def _implausible(field: str, time_ms: int, max_clock_skew_ms: int) -> InvalidInput:
    """What to say of a time that is not plausible."""
    if unit := unit_of(time_ms):
        return InvalidInput(field, time_ms, "milliseconds since 1970" + unit)
    limit = f"at most {max_clock_skew_ms / 1000:g} s after the time of the server's clock (max_clock_skew_s)"
    return InvalidInput(field, time_ms, limit)


def check_num_events(field: str, events: Sized, at_least: int, at_most: int) -> None:
    """`at_least` to `at_most` of them."""
    if not at_least <= len(events) <= at_most:
        raise InvalidInput(field, len(events), f"{at_least} to {at_most} events")


def check_events(
    field: str, events: Events, num_actions: int, max_clock_skew_ms: int = 0, *, in_order: bool = True
) -> None:
    """Legal times (in order, if they have to be; as of `check_request_time`), known actions, finite values; the first
    event that breaks a limit is named.
    """
    if len(events) == 0:
        return
    times, actions, values = events["time_ms"], events["actions"], events["value"]
    known_actions = 2**num_actions - 1

    if len(bad := np.flatnonzero((times < 1) | (times > MAX_TIME_MS))):
        at = int(bad[0])
        time_ms = int(times[at])
        raise InvalidInput(f"{field}[{at}].time_ms", time_ms, f"1 to {MAX_TIME_MS}" + unit_of(time_ms))
    if len(bad := np.flatnonzero(~is_plausible(times, max_clock_skew_ms))):
        at = int(bad[0])
        raise _implausible(f"{field}[{at}].time_ms", int(times[at]), max_clock_skew_ms)
    if in_order and (late := first_late(events)) is not None:
        raise InvalidInput(
            f"{field}[{late}].time_ms",
            int(times[late]),
            f"at least {times[late - 1]}, the time of the event before it",
        )
    if len(bad := np.flatnonzero(actions & ~np.uint32(known_actions))):
        at = int(bad[0])
        raise InvalidInput(
            f"{field}[{at}].actions", int(actions[at]), f"0 to {known_actions} (a bitmask over {num_actions} actions)"
        )
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        at = int(bad[0])
        raise InvalidInput(f"{field}[{at}].value", float(values[at]), "a finite 32-bit float")


def check_version(version: bytes | None) -> None:
    """Of a history that a caller knows."""
    if version is not None and len(version) != VERSION_BYTES:
        raise InvalidInput("expected_version", f"{len(version)} bytes", f"{VERSION_BYTES} bytes")


def check_history_request(request: HistoryRequest, most_events: int) -> None:
    """The page that is asked for. Any position is legal: after the last event there is nothing."""
    if request.limit > most_events:
        raise InvalidInput("limit", request.limit, f"0 to {most_events} events (0 is {most_events})")
    check_version(request.expected_version)


def check_append(append: Append) -> None:
    """What a caller wants besides the events themselves."""
    check_version(append.expected_version)
    num_bytes = len(append.append_id.encode(errors="surrogatepass"))
    limit = f"at most {MAX_APPEND_ID_BYTES} bytes of UTF-8 without control characters"
    if num_bytes > MAX_APPEND_ID_BYTES:
        raise InvalidInput("append_id", num_bytes, limit)
    if CONTROL_CHARACTER.search(append.append_id):
        raise InvalidInput("append_id", append.append_id, limit)
    if append.late_events not in ("", *LATE_EVENTS):
        raise InvalidInput("late_events", append.late_events, f"{', '.join(LATE_EVENTS)} or empty")


def check_num_context(context: Sized) -> None:
    """At most `MAX_CONTEXT_ENTRIES`."""
    if len(context) > MAX_CONTEXT_ENTRIES:
        raise InvalidInput("context", len(context), f"0 to {MAX_CONTEXT_ENTRIES} entries")


def check_batch(appends: Sequence[UserAppend | InvalidInput], most: Limits) -> int:
    """1 to `max_appends_per_batch` of different users, with at most `max_events_per_append` events in all. Returns
    their number.
    """
    check_num_appends(appends, most)
    readable = [each for each in appends if isinstance(each, UserAppend)]
    num_events = sum(len(each.append.events) for each in readable)
    check_num_batched(num_events, most)
    seen: set[str] = set()
    for each in readable:
        if each.user_id in seen:
            raise InvalidInput("user_id", each.user_id, "a user that no other append of the batch names")
        seen.add(each.user_id)
    return num_events


def check_num_ranks(ranks: Sized, most: Limits) -> None:
    """1 to `max_ranks_per_batch` of them."""
    if not 1 <= len(ranks) <= most.max_ranks_per_batch:
        raise InvalidInput("requests", len(ranks), f"1 to {most.max_ranks_per_batch} ranks")


def check_ranked_together(num_candidates: int, most: Limits) -> None:
    """At most so many candidates in all ranks of a batch."""
    at_most = RANKED_TOGETHER * most.max_candidates
    if num_candidates > at_most:
        raise InvalidInput("candidates", num_candidates, f"at most {at_most} in all ranks of a batch")


def check_num_batched(num_events: int, most: Limits) -> None:
    """At most `max_events_per_append` in all appends of a batch."""
    if num_events > most.max_events_per_append:
        raise InvalidInput("events", num_events, f"at most {most.max_events_per_append} in all appends of a batch")


def check_num_appends(appends: Sized, most: Limits) -> None:
    """1 to `max_appends_per_batch` of them."""
    if not 1 <= len(appends) <= most.max_appends_per_batch:
        raise InvalidInput("appends", len(appends), f"1 to {most.max_appends_per_batch} appends")


def check_context(context: Mapping[str, int], features: Sequence[ContextFeatureInfo]) -> None:
    """Names that the model declares, each with a value in its range; absent features are fine."""
    num_values = {feature.name: feature.num_values for feature in features}
    for name, value in context.items():
        if name not in num_values:
            known = ", ".join(num_values) if num_values else "none: this model reads no context"
            raise InvalidInput("context", name, f"one of the model's context features ({known})")
        if not 0 <= value < num_values[name]:
            raise InvalidInput(f"context.{name}", value, f"0 to {num_values[name] - 1}")


def check_rerank(rerank: Rerank, model: ModelInfo) -> None:
    """A method that we have, a strength and a tail weight from 0 to 1, a depth of at most `MAX_RERANK_DEPTH`; no tail
    weight for a model whose checkpoint counts no items.
    """
    if rerank.method not in RERANK_METHODS:
        raise InvalidInput("rerank.method", rerank.method, " or ".join(map(repr, RERANK_METHODS)))
    if not 0 <= rerank.strength <= 1:  # NaN neither
        raise InvalidInput("rerank.strength", rerank.strength, "0 (by score) to 1 (diversity alone)")
    if not 0 <= rerank.depth <= MAX_RERANK_DEPTH:
        raise InvalidInput("rerank.depth", rerank.depth, f"0 to {MAX_RERANK_DEPTH} (0 is the default)")
    if rerank.method == "llm":
        _check_llm(rerank)
    if not 0 <= rerank.tail_weight <= 1:  # NaN neither
        raise InvalidInput("rerank.tail_weight", rerank.tail_weight, "0 (none) to 1 (as much as the scores)")
    if rerank.tail_weight and not model.counts_items:
        limit = f"0: the checkpoint of model {model.name} does not say how often its items were acted on"
        raise InvalidInput("rerank.tail_weight", rerank.tail_weight, limit)


def _check_llm(rerank: Rerank) -> None:
    """A language model is sent few candidates, and told nothing of how."""
    if rerank.strength or rerank.tail_weight:
        name = "strength" if rerank.strength else "tail_weight"
        raise InvalidInput(f"rerank.{name}", getattr(rerank, name), "0 with method 'llm', which has none")
    if rerank.depth > MAX_LLM_DEPTH:
        raise InvalidInput("rerank.depth", rerank.depth, f"0 to {MAX_LLM_DEPTH} with method 'llm' (0 is the default)")


def check_num_names(names: Sized) -> None:
    """At most `MAX_DENSE_FEATURES`."""
    if len(names) > MAX_DENSE_FEATURES:
        raise InvalidInput("features.names", len(names), f"at most {MAX_DENSE_FEATURES} names")


def check_num_values(values: Sized, at_most: int) -> None:
    """At most so many in all."""
    if len(values) > at_most:
        raise InvalidInput("features.values", len(values), f"at most {at_most} numbers over HTTP")


def check_dense(
    dense: DenseFeatures, features: Sequence[str], num_candidates: int, counters: Sequence[str] = ()
) -> None:
    """Names that the model declares, each once, with a finite number for each candidate; absent ones are fine. Counters
    are nobody's to give.
    """
    names, values = dense.names, dense.values
    check_num_names(names)
    for at, name in enumerate(names):
        if name in counters:
            limit = "a feature that callers give: this is a counter, which the server counts itself"
            raise InvalidInput(f"features.names[{at}]", name, limit)
        if name not in features:
            known = ", ".join(features) if features else "none: this model reads no dense features"
            raise InvalidInput(f"features.names[{at}]", name, f"one of the model's dense features ({known})")
        if name in names[:at]:
            raise InvalidInput(f"features.names[{at}]", name, "a name that is given once")
    if len(values) != num_candidates * len(names):
        expected = f"{num_candidates * len(names)} numbers ({num_candidates} candidates, {len(names)} features of each)"
        raise InvalidInput("features.values", len(values), expected)
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        at = int(bad[0])
        where = f"{names[at % len(names)]} of candidate {at // len(names)}"
        raise InvalidInput(f"features.values[{at}]", float(values[at]), f"a finite 32-bit float ({where})")
