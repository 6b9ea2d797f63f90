"""`bench everything`: both servers answer, and the one that has everything has it."""

from pathlib import Path

import pytest
import torch

from loadtest.bench.everything import EverythingOptions, page, run
from loadtest.report.table import as_text
from mfalcon.models import checkpoint
from server.config import ServerConfig
from tests.small import small_checkpoint


@pytest.mark.thorough
def test_a_small_run_is_a_page(tmp_path: Path) -> None:
    path, small = tmp_path / "model", small_checkpoint("dfgr", torch.float32)
    checkpoint.save(path, small.model, small.items)
    options = EverythingOptions(candidates=20, calls=10, warmup=2, events=5, threads=1, rounds=2)
    result = run(path, options, ServerConfig.model_fields, lambda _: None)
    assert {"--tls-cert-file", "--tokens-file", "--capture-dir", "--access-log", "--otlp-endpoint"} <= set(result.on)
    assert all(min(*each.off_ms, *each.on_ms) > 0 for each in result.rounds)
    assert "median growth of p50" in as_text(page(result))
