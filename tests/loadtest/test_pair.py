"""What `make balanced` shows is so."""

from pathlib import Path

import pytest
import torch

from loadtest.balance.pair import main, show
from mfalcon.models import checkpoint
from tests.small import small_checkpoint


@pytest.mark.slow
def test_a_user_stays_on_one_replica_and_moves_when_it_is_killed(tmp_path: Path) -> None:
    small = small_checkpoint(dtype=torch.float32)
    checkpoint.save(tmp_path / "small", small.model, small.items)
    said: list[str] = []
    show(tmp_path / "small", said.append, lambda: said.append("stays"))
    assert [line.split("  ")[0] for line in said[1:4]] == ["first rank", "the same again", "its replica is killed"]
    assert said[2].endswith(", 0 tokens encoded")
    assert said[-1] == "stays"


def test_ctrl_c_before_it_is_up_is_no_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("loadtest.balance.pair.show", interrupted)
    monkeypatch.setattr("sys.argv", ["pair", "--checkpoint", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
