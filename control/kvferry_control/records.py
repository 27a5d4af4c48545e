"""Worker records: what a worker tells the cluster about itself, between etcd's bytes and values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf import json_format

from kvferry.core.errors import ConfigInvalid, LayoutInvalid, MessageTooLarge, OperatorError
from kvferry.core.layouts import WorkerLayout, validate_layout
from kvferry.core.path_floor import ANY_PATH, PathFloor, path_floor
from kvferry.core.reasons import Reason
from kvferry.core.transport_pairing import RankTransport
from kvferry.rpc.layouts import layout_from_wire, layout_to_wire
from kvferry.worker.v1 import worker_pb2 as pb

PROTOCOL_VERSION = 1
RECORD_BYTES_MAX = 512 * 1024
"""Largest value under a worker's key; etcd itself refuses requests of 1.5 MiB."""


class WorkerRecordInvalid(OperatorError):
    """The value under a worker's key cannot be understood; that worker is left out of the snapshot."""

    default_reason = Reason.PROTOCOL_MISMATCH


@dataclass(frozen=True, slots=True)
class RankInfo:
    """A rank, as its worker describes it."""

    rank: int
    device: str
    pool_bytes: int
    method: str
    method_version: str = ""
    host_id: bytes = b""
    maps_same_host: bool = False


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A live worker."""

    name: str
    role: pb.Role.ValueType
    state: pb.WorkerState.ValueType
    endpoint: str
    incarnation: int
    instance_id: bytes
    protocol_version: int
    layout: WorkerLayout | None
    ranks: tuple[RankInfo, ...]
    version: str = ""
    """Of kvferry."""
    floor: PathFloor = ANY_PATH
    """What it demands of the ways on which it pulls."""
    attested: Mapping[str, pb.AttestedSource] = field(default_factory=dict)
    """What it has attested of others, by their names."""
    transports: tuple[RankTransport, ...] = field(init=False, compare=False)
    """Those of its ranks, alike ones once."""

    def __post_init__(self) -> None:
        found = (RankTransport(r.method, r.method_version, r.host_id, r.maps_same_host) for r in self.ranks)
        object.__setattr__(self, "transports", tuple(dict.fromkeys(found)))

    def to_wire(self) -> pb.Worker:
        """As routers see it."""
        return pb.Worker(
            name=f"workers/{self.name}",
            incarnation=self.incarnation,
            role=self.role,
            state=self.state,
            endpoint=self.endpoint,
            layout=layout_to_wire(self.layout) if self.layout is not None else None,
            ranks=_ranks_to_wire(self.ranks),
        )


def encode_record(record: WorkerRecord, explicit_incarnation: int) -> bytes:
    """The value for etcd: JSON, so that an operator can read it there.

    ``record.incarnation`` is not written: readers take ``explicit_incarnation``, or the create revision if it is 0.

    Raises:
        MessageTooLarge: the layout makes the value larger than ``RECORD_BYTES_MAX``.
    """
    message = pb.WorkerRecord(
        worker=record.name,
        role=record.role,
        state=record.state,
        endpoint=record.endpoint,
        explicit_incarnation=explicit_incarnation,
        instance_id=record.instance_id,
        protocol_version=record.protocol_version,
        layout=layout_to_wire(record.layout) if record.layout is not None else None,
        ranks=_ranks_to_wire(record.ranks),
        version=record.version,
        floor=pb.PathFloor(require_path=record.floor.require_path, min_gbytes_per_s=record.floor.min_gbytes_per_s),
        attested=record.attested.values(),
    )
    text = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
    value = text.encode()
    if len(value) > RECORD_BYTES_MAX:
        raise MessageTooLarge.of_field("layout", f"{len(value)} bytes", f"a record has at most {RECORD_BYTES_MAX}")
    return value


def decode_record(key: str, value: bytes, create_revision: int) -> WorkerRecord:
    """The record in an etcd value.

    Raises:
        WorkerRecordInvalid: the value is no record, or contradicts itself.
    """
    message = _parse(key, value)
    name = key.rpartition("/")[2]
    if message.worker != name:
        raise WorkerRecordInvalid.of_field(key, message.worker, "the key names another worker")
    layout = None
    if message.HasField("layout"):
        try:
            layout = layout_from_wire(message.layout)
            validate_layout(layout)
        except LayoutInvalid as error:
            raise WorkerRecordInvalid(f"{key}: {error.message}", metadata=error.metadata) from error
    return WorkerRecord(
        name=name,
        role=message.role,
        state=message.state,
        endpoint=message.endpoint,
        incarnation=message.explicit_incarnation or create_revision,
        instance_id=message.instance_id,
        protocol_version=message.protocol_version,
        layout=layout,
        ranks=tuple(
            RankInfo(r.rank, r.device, r.pool_bytes, r.method, r.method_version, r.host_id, r.maps_same_host)
            for r in message.ranks
        ),
        version=message.version,
        floor=_floor_of(key, message.floor),
        attested={source.worker: source for source in message.attested},
    )


def instance_of(value: bytes) -> bytes:
    """The instance id in an etcd value; empty if the value cannot be read."""
    try:
        return _parse("", value).instance_id
    except WorkerRecordInvalid:
        return b""


def incarnation_of(key: str, value: bytes, create_revision: int) -> int:
    """The incarnation that an etcd value stands for."""
    return _parse(key, value).explicit_incarnation or create_revision


def _parse(key: str, value: bytes) -> pb.WorkerRecord:
    try:
        return json_format.Parse(value, pb.WorkerRecord(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise WorkerRecordInvalid.of_field(key, f"{len(value)} bytes", f"is no worker record: {error}") from error


def _floor_of(key: str, wire: pb.PathFloor) -> PathFloor:
    try:
        return path_floor(tuple(wire.require_path), wire.min_gbytes_per_s, field="floor.require_path")
    except ConfigInvalid as error:
        raise WorkerRecordInvalid(f"{key}: {error.message}", metadata=error.metadata) from error


def _ranks_to_wire(ranks: tuple[RankInfo, ...]) -> list[pb.RankRecord]:
    return [
        pb.RankRecord(
            rank=r.rank,
            device=r.device,
            pool_bytes=r.pool_bytes,
            method=r.method,
            method_version=r.method_version,
            host_id=r.host_id,
            maps_same_host=r.maps_same_host,
        )
        for r in ranks
    ]
