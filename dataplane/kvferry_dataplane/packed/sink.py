"""How a reader gets a chunk out of a stream: straight into the pool, or by way of a staging slot."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from kvferry.core.errors import KvferryError
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import CopyJob, Window
from kvferry.device.native import CancelFlag, stream_receive
from kvferry.device.streams import StreamEnd, StreamOutcome
from kvferry_dataplane.packed.staging import Staging

_SLOT_SECONDS = 5.0


class Stop(NamedTuple):
    """How another thread ends a receive: it raises the flag, then adds to the eventfd."""

    flag: CancelFlag
    descriptor: int


class Landed(NamedTuple):
    """What has come of a chunk. ``tail`` scatters the rest of the way, where that is another step."""

    outcome: StreamOutcome
    suffix: bytes
    is_staged: bool = False
    """Whether it came into a staging slot: in the pool is then what the tail has copied."""
    tail: CopyJob | None = None
    release: Callable[[], None] = lambda: None
    """Gives the slot back; to be called when the tail is done, more than once does no harm."""
    tail_wakes: bool = True
    """Whether the end of the tail wakes whoever waits for it."""
    failure: KvferryError | None = None
    """Why what has come cannot be scattered."""


class ChunkSink(Protocol):
    """Receives pieces into the pool."""

    def receive(self, connection: int, batch: CopyPlan, suffix_bytes: int, stop: Stop) -> Landed:
        """Receive the pieces of ``batch`` and then a suffix. When it returns, only its tail still writes to the pool.

        Raises:
            InvalidArgument: a piece leaves the pool. Nothing was received.
            ResourceExhausted: no staging slot became free. Nothing was received.
        """
        ...


class HostSink:
    """A pool in host memory: the kernel scatters the pieces itself."""

    def __init__(self, pool: Window) -> None:
        self._pool = pool

    def receive(self, connection: int, batch: CopyPlan, suffix_bytes: int, stop: Stop) -> Landed:
        """Receive into the pool."""
        outcome, suffix = stream_receive(
            connection,
            self._pool,
            batch.destination_offsets,
            batch.lengths,
            suffix_bytes=suffix_bytes,
            limit_s=-1.0,
            flag=stop.flag,
            wake_descriptor=stop.descriptor,
        )
        return Landed(outcome, suffix)


class ScatteringSink:
    """A pool that only a copier reaches: a chunk is received into a staging slot and scattered while the next comes."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging

    def receive(self, connection: int, batch: CopyPlan, suffix_bytes: int, stop: Stop) -> Landed:
        """Receive into a slot, and start to scatter."""
        total, slots = batch.total_bytes, self._staging.slots
        slot = slots.take(total, _SLOT_SECONDS)
        tail: CopyJob | None = None
        failure: KvferryError | None = None
        try:
            outcome, suffix = stream_receive(
                connection,
                slot.host,
                np.zeros(1, dtype=np.int64),
                np.array([total]),
                suffix_bytes=suffix_bytes,
                limit_s=-1.0,
                flag=stop.flag,
                wake_descriptor=stop.descriptor,
            )
            if outcome.end is StreamEnd.COMPLETE:
                try:
                    tail = self._staging.scatter(slot, batch)
                except KvferryError as error:
                    failure = error
        finally:
            if tail is None:
                slots.give_back(slot)
        release = _once(lambda: slots.give_back(slot))
        return Landed(outcome, suffix, True, tail, release, self._staging.copier_wakes, failure)


def _once(action: Callable[[], None]) -> Callable[[], None]:
    left = [action]

    def release() -> None:
        if left:
            left.pop()()

    return release
