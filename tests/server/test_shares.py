"""What `share` of [[models]] gives each: a part of every budget, and of a GPU's free memory where none is set."""

from pathlib import Path

import pytest
import torch

from server.config import load_config
from server.options import model_options

GIB = 1 << 30
TABLES = "".join(
    f'[[models]]\nname = "{name}"\ncheckpoint = "{name}"\n{share}\n'
    for name, share in (("first", "share = 0.5"), ("second", ""), ("third", ""))
)


@pytest.mark.parametrize(
    ("setting", "num_bytes"),
    [("", [40 * GIB, 20 * GIB, 20 * GIB]), ("device_budget_mb = 1024", [GIB // 2] + [GIB // 4] * 2)],
)
def test_a_gpus_memory_is_shared_as_it_is_before_any_pool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, num_bytes: list[int]
) -> None:
    """Asked for each pool on its own, the first would take 80% of all, and the next 80% of the rest."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100 * GIB, 140 * GIB))
    file = tmp_path / "server.toml"
    file.write_text(f"kv_budget_mb = 1024\n{setting}\n{TABLES}")
    options = model_options(load_config(file, {}), torch.device("cuda", 0))
    assert [one.name for one in options] == ["first", "second", "third"]
    assert [one.kv_budget_bytes for one in options] == [GIB // 2, GIB // 4, GIB // 4]
    assert [one.device_budget_bytes for one in options] == num_bytes
