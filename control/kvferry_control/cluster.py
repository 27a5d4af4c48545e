"""The cluster as this control knows it: live workers by name, and the pairing verdicts between them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType

from kvferry.core.errors import NotFound
from kvferry.core.pairing import Mismatch, mismatches
from kvferry.core.reasons import Reason
from kvferry.rpc.reasons import reason_to_wire
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry_control.pair_ways import attested_mismatches, attested_of, way_mismatches, way_warnings
from kvferry_control.records import WorkerRecord

_SOURCES = (pb.ROLE_PREFILL, pb.ROLE_BOTH)
_DESTINATIONS = (pb.ROLE_DECODE, pb.ROLE_BOTH)


class Cluster:
    """Live workers. ``replace`` is fed by the watcher; readers see one consistent mapping at a time."""

    def __init__(self) -> None:
        self.workers: Mapping[str, WorkerRecord] = MappingProxyType({})
        self.revision = 0
        self.connected = False
        self.on_replaced: Callable[[Mapping[str, WorkerRecord]], None] = lambda _workers: None
        self._confirmed = time.monotonic()
        self._changed: asyncio.Future[None] | None = None
        self._verdicts: dict[tuple[str, bytes, str, bytes], tuple[Mismatch, ...]] = {}
        """By names and instance ids: after etcd has lost its data, two lives may have the same incarnation."""

    @property
    def age_s(self) -> float:
        """Seconds since etcd last confirmed the view; 0 while it is connected."""
        return 0.0 if self.connected else time.monotonic() - self._confirmed

    def find(self, name: str) -> WorkerRecord | None:
        """A live worker, or None."""
        return self.workers.get(name)

    def get(self, name: str) -> WorkerRecord:
        """A live worker.

        Raises:
            NotFound: there is none of that name.
        """
        record = self.find(name)
        if record is None:
            raise NotFound.of_field("name", f"workers/{name}", "no live worker of that name")
        return record

    def replace(self, workers: Mapping[str, WorkerRecord]) -> None:
        """Take a new view."""
        self.workers = MappingProxyType(dict(workers))
        live = {(record.name, record.instance_id) for record in workers.values()}
        self._verdicts = {k: v for k, v in self._verdicts.items() if k[:2] in live and k[2:] in live}
        self.on_replaced(self.workers)
        self._wake()

    def set_connected(self, connected: bool) -> None:
        """Note whether etcd answers."""
        if connected == self.connected:
            return
        self.connected = connected
        self._confirmed = time.monotonic()
        self._wake()

    async def changes(self) -> AsyncIterator[None]:
        """Yields at once, and again after changes; changes that come while the reader is busy are one."""
        seen = -1
        while True:
            if seen != self.revision:
                seen = self.revision
                yield
                continue
            if self._changed is None or self._changed.done():
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._changed)

    def pair(self, source: WorkerRecord, destination: WorkerRecord) -> pb.Pair:
        """The verdict on one pair."""
        ways = way_mismatches(source, destination) or attested_mismatches(source, destination)
        found = (*self._verdict(source, destination), *ways)
        attested = attested_of(source, destination)
        return pb.Pair(
            source=f"workers/{source.name}",
            source_incarnation=source.incarnation,
            destination=f"workers/{destination.name}",
            destination_incarnation=destination.incarnation,
            compatible=not found,
            mismatches=[
                pb.Mismatch(reason=reason_to_wire(m.reason), field=m.field, source=m.source, destination=m.destination)
                for m in found
            ],
            draining=[
                f"workers/{record.name}" for record in (source, destination) if record.state == pb.WORKER_STATE_DRAINING
            ],
            routes=attested.routes if attested is not None else (),
            attestation_refusal=attested.refusal if attested is not None else "",
            warnings=way_warnings(source, destination),
        )

    def pairs(self, compatible_only: bool) -> list[pb.Pair]:
        """All pairs of a worker that prefills and another that decodes, in order of their names.

        ``compatible_only`` leaves out those of which one drains as well: they are of no use for new work. A router that
        holds a handle of a draining worker asks for the pair itself, which is as compatible as before.
        """
        ordered = [self.workers[name] for name in sorted(self.workers)]
        pairs = [
            self.pair(source, destination)
            for source in ordered
            for destination in ordered
            if source.role in _SOURCES and destination.role in _DESTINATIONS and source is not destination
        ]
        return [pair for pair in pairs if not compatible_only or (pair.compatible and not pair.draining)]

    def _verdict(self, source: WorkerRecord, destination: WorkerRecord) -> tuple[Mismatch, ...]:
        for record, side in ((source, "source"), (destination, "destination")):
            if record.layout is None:
                return (Mismatch("layout", *(("undeclared", "-") if side == "source" else ("-", "undeclared"))),)
        key = (source.name, source.instance_id, destination.name, destination.instance_id)
        verdict = self._verdicts.get(key)
        if verdict is None and source.layout is not None and destination.layout is not None:
            verdict = mismatches(source.layout, destination.layout)
            if source.protocol_version != destination.protocol_version:
                versions = str(source.protocol_version), str(destination.protocol_version)
                verdict = (Mismatch("protocol_version", *versions, Reason.PROTOCOL_MISMATCH), *verdict)
            self._verdicts[key] = verdict
        return verdict or ()

    def _wake(self) -> None:
        self.revision += 1
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
