"""A worker's drain, as its own control tells of it."""

from kvferry.rpc.times import duration, seconds_of
from kvferry.sdk.arguments import checked_name, checked_seconds
from kvferry.sdk.results import Drain, DrainState
from kvferry.worker.v1 import drain_pb2 as pb

# The wire numbers count up from 0 in the order of the enum's members.
_STATES = dict(enumerate(DrainState))


def drain_request(name: str, timeout_s: float | None, stay: bool) -> pb.DrainWorkerRequest:
    """The request that begins a drain; ``timeout_s`` None: as the worker is configured."""
    request = pb.DrainWorkerRequest(name=checked_name("workers", name), stay=stay)
    if timeout_s is not None:
        request.timeout.CopyFrom(duration(checked_seconds("timeout_s", timeout_s)))
    return request


def drain_of(wire: pb.Drain) -> Drain:
    """A drain as it stands."""
    return Drain(
        worker=wire.worker,
        state=_STATES.get(wire.state, DrainState.UNKNOWN),
        live_publication_count=wire.live_publication_count,
        active_transfer_count=wire.active_transfer_count,
        time_left_s=seconds_of(wire.time_left) if wire.HasField("time_left") else None,
        exits=wire.exits,
        leaving_ranks=tuple(wire.leaving_ranks),
    )
