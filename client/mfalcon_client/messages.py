"""The messages of ranking.proto, in a descriptor pool of their own.

A program may hold another version of that file, the server's say, or one of its own of that name. They are made from
the descriptor, so that no generated code ties this package to one version of protobuf. messages.pyi has the types.
"""

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClassesForFiles

(_file,) = FileDescriptorSet.FromString(Path(__file__).with_name("ranking.binpb").read_bytes()).file
_pool = DescriptorPool()
_pool.AddSerializedFile(_file.SerializeToString())

DESCRIPTOR = _pool.FindFileByName(_file.name)
globals().update(
    (name.removeprefix(f"{_file.package}."), message)
    for name, message in GetMessageClassesForFiles([_file.name], _pool).items()
)
