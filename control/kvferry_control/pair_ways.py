"""Whether bytes may go from one worker to another: their transports, what the destination demands, what it attested."""

from kvferry.core.errors import KvferryError, error_of
from kvferry.core.pairing import Mismatch
from kvferry.core.path_floor import floor_mismatches, possible_way_mismatches
from kvferry.core.transport_pairing import can_map, transport_mismatches, transport_warnings, way_of
from kvferry.worker.v1 import worker_pb2 as pb
from kvferry_control.peers.attested import pair_ways
from kvferry_control.records import WorkerRecord


def way_mismatches(source: WorkerRecord, destination: WorkerRecord) -> tuple[Mismatch, ...]:
    """Why they may not, as far as is known before a byte has moved; a worker whose data planes are missing fits all."""
    if not source.ranks or not destination.ranks:
        return ()
    theirs, ours = source.transports, destination.transports
    found = transport_mismatches(theirs, ours)
    if found or not destination.floor.rules:
        return found
    mappable = can_map(theirs, ours)
    return possible_way_mismatches(destination.floor, way_of(ours[0].method), can_map=mappable, packs=True)


def attested_mismatches(source: WorkerRecord, destination: WorkerRecord) -> tuple[Mismatch, ...]:
    """Why they may not, by what was attested; nothing where that is not known."""
    attested = attested_of(source, destination)
    if attested is None or not attested.routes or not destination.floor.demands_something:
        return ()
    return floor_mismatches(destination.floor, pair_ways(attested.routes))


def refusal_of(mismatches: tuple[Mismatch, ...]) -> KvferryError:
    """The error that a pull ends with for them; names the first field and both values, its message lists all."""
    first = mismatches[0]
    metadata = {"field": first.field, "source": first.source, "destination": first.destination}
    return error_of(first.reason, "; ".join(map(str, mismatches)), metadata)


def attested_of(source: WorkerRecord, destination: WorkerRecord) -> pb.AttestedSource | None:
    """What the destination has attested of this life of the source."""
    found = destination.attested.get(source.name)
    return found if found is not None and found.instance_id == source.instance_id else None


def way_warnings(source: WorkerRecord, destination: WorkerRecord) -> list[str]:
    """What differs between the two and is not known to do harm."""
    found = list(transport_warnings(source.transports, destination.transports))
    if source.version != destination.version:
        theirs, ours = source.version or "unknown", destination.version or "unknown"
        found.append(f"versions of kvferry differ: source {theirs}, destination {ours}")
    return found
