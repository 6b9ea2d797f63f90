"""What an import brings along, and that its messages are the contract's, whatever else a program holds."""

import ast
import subprocess
import sys
from pathlib import Path

from mfalcon_client import messages
from proto import ranking_pb2

CLIENT = Path(__file__).parents[2] / "client"
NEEDS = {"google", "grpc", "mfalcon_client", "numpy", "opentelemetry"}


def run(code: str) -> str:
    """What a fresh interpreter prints that finds the client alone."""
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, cwd=CLIENT, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_an_import_brings_only_what_it_needs() -> None:
    loaded = set(run("import sys, mfalcon_client; print(*{n.partition('.')[0] for n in sys.modules})").split())
    assert "mfalcon_client" in loaded
    # (gRPC itself imports grpc_tools where that is installed.)
    assert not loaded & {"torch", "pandas", "mfalcon", "server", "kernels", "proto", "opentelemetry"}


def test_it_imports_nothing_else() -> None:
    for path in (CLIENT / "mfalcon_client").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
            assert tops <= NEEDS, f"{path.name} imports {tops - NEEDS}"


def test_both_copies_of_the_messages_agree() -> None:
    request = ranking_pb2.RankRequest(user_id="ann", candidates=[3, 1], context={"hour": 7})
    copy = messages.RankRequest.FromString(request.SerializeToString())
    assert copy.SerializeToString(deterministic=True) == request.SerializeToString(deterministic=True)
    assert messages.DESCRIPTOR.pool is not ranking_pb2.DESCRIPTOR.pool
    assert {name for name in vars(messages) if name in ranking_pb2.DESCRIPTOR.message_types_by_name} == set(
        ranking_pb2.DESCRIPTOR.message_types_by_name
    )


def test_a_file_of_the_same_name_does_no_harm() -> None:
    code = (
        "from google.protobuf import descriptor_pb2, descriptor_pool\n"
        "file = descriptor_pb2.FileDescriptorProto(name='proto/ranking.proto', package='mfalcon.v1')\n"
        "file.message_type.add(name='RankRequest')\n"
        "descriptor_pool.Default().AddSerializedFile(file.SerializeToString())\n"
        "from mfalcon_client.messages import RankRequest\n"
        "print(RankRequest(user_id='ann').user_id)\n"
    )
    assert run(code).split() == ["ann"]
