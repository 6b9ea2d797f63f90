"""Costs that are made up, so that what a simulation should say can be worked out by hand."""

from dataclasses import replace

from loadtest.scale.costs import Costs

FREE = Costs(
    model="made up",
    machine="none",
    commit="none",
    encode=((1, 0.0),),
    extend_s=0.0,
    call=((1, 0.0),),
    candidate=((1, 0.0),),
    host_s=0.0,
    append_s=0.0,
    append_event_s=0.0,
    append_log_s=0.0,
    log_s=0.0,
    fetch_s=0.0,
    fetch_byte_s=0.0,
    store_s=0.0,
    store_byte_s=0.0,
    redis_s=0.0,
    redis_byte_s=0.0,
    client_s=0.0,
    latency_s=0.001,
    bandwidth=1e9,
    page_tokens=128,
    page_bytes=128 * 6_144,
    redis_token_bytes=6_000,
    chunk_tokens=64,
    max_history=4_096,
    window_chunk=512,
)
"""Nothing costs anything but the way to Redis."""

USUAL = replace(
    FREE,
    encode=((1, 4e-5), (4_097, 4e-5 + 4_096 * 1e-8)),
    extend_s=1e-3,
    call=((1, 1e-3), (4_097, 1e-3 + 4_096 * 1e-6)),
    candidate=((1, 4e-5), (4_097, 4e-5 + 4_096 * 2e-8)),
    host_s=1e-3,
    append_s=5e-4,
    log_s=2e-4,
    fetch_s=5e-4,
    fetch_byte_s=5e-10,
    store_s=5e-4,
    store_byte_s=5e-10,
    redis_s=2e-5,
    redis_byte_s=2e-10,
)
"""About those of a model of three layers of width 256."""
