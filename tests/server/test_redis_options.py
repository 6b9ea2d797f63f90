"""What the settings make of Redis, and where spans may go."""

import sys
from pathlib import Path

import pytest
import torch

from mfalcon.engine.redis_parts import layout_of
from mfalcon.errors import ConfigError
from mfalcon.kvcache.chunk import PayloadDtype
from server.config import load_config
from server.options import read_secret, redis_options
from server.tracing import trace_to
from tests.small import small_checkpoint


def test_without_a_url_there_is_no_redis() -> None:
    assert redis_options(load_config(None, {"checkpoint": "c"})) is None


def test_settings_reach_their_place(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("0123456789abcdef\n")
    options = redis_options(
        load_config(
            None,
            {
                "checkpoint": "c",
                "redis_url": "rediss://me:pw@h:1/2",
                "redis_prefix": "p",
                "log_unreachable": "stale",
                "redis_timeout_ms": 20,
                "redis_state_dtype": "int8",
                "redis_budget_mb": 3,
                "append_durability": "replica",
                "redis_secret_file": tmp_path / "secret",
            },
        )
    )
    assert options is not None
    assert options.client.url == "rediss://me:pw@h:1/2"
    assert options.client.timeout_s == 0.02
    assert options.holds_log and options.log.serve_stale
    assert options.state_dtype is PayloadDtype.INT8
    assert options.budget_bytes == 3 << 20
    assert options.log.durability == "replica"
    assert (options.prefix, options.secret) == ("p", b"0123456789abcdef")


def test_states_in_redis_have_the_compute_dtype_unless_told_otherwise() -> None:
    options = redis_options(load_config(None, {"checkpoint": "c", "redis_url": "redis://h"}))
    assert options is not None and options.state_dtype is None
    for dtype, payload in ((torch.float32, PayloadDtype.FLOAT32), (torch.bfloat16, PayloadDtype.BFLOAT16)):
        assert layout_of(small_checkpoint(dtype=dtype).model, "f", options.state_dtype).dtype is payload


def test_a_log_may_stay_in_this_process_beside_redis() -> None:
    options = redis_options(load_config(None, {"checkpoint": "c", "redis_url": "redis://h", "event_log": "memory"}))
    assert options is not None and not options.holds_log


def test_the_url_is_not_shown() -> None:
    assert "pw" not in repr(load_config(None, {"checkpoint": "c", "redis_url": "redis://:pw@h"}))


def test_a_secret_that_is_short_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("x\n")
    with pytest.raises(ConfigError, match="got 1 bytes, must be at least 16"):
        read_secret(tmp_path / "short")
    with pytest.raises(ConfigError, match=r"cannot read .*missing: No such file"):
        read_secret(tmp_path / "missing")


def test_tracing_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    trace_to(None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match="needs the extra"):
        trace_to("http://localhost:1")
