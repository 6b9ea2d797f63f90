"""The load report of ORCA as its readers have it: compiled from the published message, not from what we write it by."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_tools import protoc

PUBLISHED = """
syntax = "proto3";
package xds.data.orca.v3;

message OrcaLoadReport {
  double cpu_utilization = 1;
  double mem_utilization = 2;
  uint64 rps = 3;
  map<string, double> request_cost = 4;
  map<string, double> utilization = 5;
  double rps_fractional = 6;
  double eps = 7;
  map<string, double> named_metrics = 8;
  double application_utilization = 9;
}
"""
"""Names and numbers of xds/data/orca/v3/orca_load_report.proto."""


@cache
def _message_class() -> Any:
    with tempfile.TemporaryDirectory() as directory:
        source, compiled = Path(directory, "orca.proto"), Path(directory, "orca.bin")
        source.write_text(PUBLISHED)
        assert protoc.main(["protoc", f"-I{directory}", f"--descriptor_set_out={compiled}", str(source)]) == 0
        files = FileDescriptorSet.FromString(compiled.read_bytes()).file
    pool = DescriptorPool()
    for file in files:
        pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("xds.data.orca.v3.OrcaLoadReport"))


def load_report(raw: bytes) -> Any:
    """The message of these bytes; a field that it does not have is an error."""
    message = _message_class().FromString(raw)
    known = message.SerializeToString(deterministic=True)
    message.DiscardUnknownFields()
    assert message.SerializeToString(deterministic=True) == known
    return message
