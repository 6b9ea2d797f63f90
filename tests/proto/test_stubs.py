"""The committed stubs and the descriptor are what protoc makes of the protocols."""

from pathlib import Path

import pytest
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
STUBS = (
    "ranking_pb2.py",
    "ranking_pb2.pyi",
    "ranking_pb2_grpc.py",
    "ranking.binpb",
    "inference_pb2.py",
    "inference_pb2.pyi",
)


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    (out / "proto").mkdir()
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        f"--descriptor_set_out={out}/proto/ranking.binpb",
        "proto/ranking.proto",
    ]
    assert protoc.main(arguments) == 0
    assert protoc.main([*arguments[:4], "proto/inference.proto"]) == 0
    return out / "proto"


@pytest.mark.parametrize("name", STUBS)
def test_stub_is_fresh(regenerated: Path, name: str) -> None:
    assert (ROOT / "proto" / name).read_bytes() == (regenerated / name).read_bytes(), "run: make proto"
