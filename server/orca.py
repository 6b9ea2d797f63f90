"""The load report of ORCA (xds.data.orca.v3.OrcaLoadReport) in the two forms that are read: text and protobuf.

The message is described here, by the fields that are told, in a pool of descriptors of its own: the package that
carries it (xds-protos) takes half a second to import, and overwrites files of OpenTelemetry's. A test reads what is
written here by the published message.
"""

from typing import Final

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, MessageOptions
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

PACKAGE: Final = "xds.data.orca.v3"
NAME: Final = "OrcaLoadReport"
_NAMED: Final = "NamedMetricsEntry"
_Field = FieldDescriptorProto


class Orca:
    """Writes reports."""

    def __init__(self) -> None:
        pool = DescriptorPool()
        pool.Add(_file())
        self._report = GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{NAME}"))

    def binary(self, application_utilization: float, rps: float, named: dict[str, float]) -> bytes:
        """The message as bytes. rps: of this process. named: metrics by their names."""
        return self._message(application_utilization, rps, named).SerializeToString(deterministic=True)

    def _message(self, application_utilization: float, rps: float, named: dict[str, float]) -> Message:
        return self._report(application_utilization=application_utilization, rps_fractional=rps, named_metrics=named)


def text(application_utilization: float, rps: float, named: dict[str, float]) -> str:
    """The report as Envoy reads it in a header."""
    told = {"application_utilization": f"{application_utilization:.2f}", "rps_fractional": f"{rps:.1f}"}
    told |= {f"named_metrics.{name}": f"{value:.1f}" for name, value in named.items()}
    return "TEXT " + ",".join(f"{name}={value}" for name, value in told.items())


def _file() -> FileDescriptorProto:
    entry = DescriptorProto(name=_NAMED, options=MessageOptions(map_entry=True))
    _add(entry, "key", 1, _Field.TYPE_STRING)
    _add(entry, "value", 2, _Field.TYPE_DOUBLE)
    report = DescriptorProto(name=NAME, nested_type=[entry])
    _add(report, "rps_fractional", 6, _Field.TYPE_DOUBLE)
    report.field.append(
        _Field(
            name="named_metrics",
            number=8,
            label=_Field.LABEL_REPEATED,
            type=_Field.TYPE_MESSAGE,
            type_name=f".{PACKAGE}.{NAME}.{_NAMED}",
        )
    )
    _add(report, "application_utilization", 9, _Field.TYPE_DOUBLE)
    return FileDescriptorProto(name="orca.proto", package=PACKAGE, syntax="proto3", message_type=[report])


def _add(message: DescriptorProto, name: str, number: int, kind: "FieldDescriptorProto.Type.ValueType") -> None:
    message.field.append(_Field(name=name, number=number, label=_Field.LABEL_OPTIONAL, type=kind))
