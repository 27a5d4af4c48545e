"""Reads chunks that sources hold in staging slots."""

import time
from collections.abc import Callable

from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.packed.bounds import ReaderBounds
from kvferry_dataplane.packed.connection import PackPeer
from kvferry_dataplane.packed.ending import wait_for_end
from kvferry_dataplane.packed.job import LeaseClaim
from kvferry_dataplane.packed.slot_connection import SlotConnection
from kvferry_dataplane.packed.slot_job import SlotJob
from kvferry_dataplane.packed.staging import Slot, Staging
from kvferry_dataplane.packed.staging_agent import StagingAgent
from kvferry_dataplane.packed.staging_reads import StagingReads
from kvferry_dataplane.peers import Peer


class SlotReader:
    """The connections of one data plane to sources that hold chunks. Belongs to the reads' thread, which polls it."""

    def __init__(
        self,
        staging: Staging,
        make_agent: Callable[[int], StagingAgent],
        bounds: ReaderBounds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``make_agent`` makes NIXL agents whose local side is the staging's memory, given their number, from 1."""
        self._staging = staging
        self._bounds = bounds or ReaderBounds()
        self._clock = clock
        self._reads = StagingReads(make_agent, self._give_back, self._bounds.lost_seconds)
        self._connections: dict[PackPeer, SlotConnection] = {}
        self._ending: list[SlotConnection] = []

    @property
    def agents_made(self) -> int:
        """NIXL agents so far: more than one, if one had to be given up."""
        return self._reads.agents_made

    def read(self, peer: Peer, claim: LeaseClaim, batch: CopyPlan) -> SlotJob:
        """Start reading a chunk; a connection that has ended is made anew."""
        assert peer.pack is not None
        self.poll()
        connection = self._connections.get(peer.pack)
        if connection is None:
            connection = SlotConnection(peer, self._staging, self._reads, self._bounds)
            self._connections[peer.pack] = connection
        return connection.ask(claim, batch)

    def poll(self) -> None:
        """Do what can be done at once, for every job."""
        now = self._clock()
        self._reads.poll(now)
        for connection in [*self._connections.values(), *self._ending]:
            connection.poll(now)
        for peer, connection in list(self._connections.items()):
            if connection.failure is not None:
                self._ending.append(self._connections.pop(peer))
        self._ending = [connection for connection in self._ending if not connection.is_over]

    def disconnect(self, peer: Peer) -> None:
        """Close a source's connection, if there is one."""
        connection = None if peer.pack is None else self._connections.pop(peer.pack, None)
        if connection is not None:
            connection.close("it was closed")
            self._ending.append(connection)
        self._reads.forget(peer)

    def close(self) -> None:
        """Close every connection, end every copy and destroy the agent: nothing is written after this.

        Raises:
            TransportFailed: a copy did not end in time.
        """
        for connection in self._connections.values():
            connection.close("it was closed")
            self._ending.append(connection)
        self._connections.clear()
        wait_for_end(self._have_ended)
        self._reads.close()

    def _have_ended(self) -> bool:
        if self._ending:
            self.poll()
        return not self._ending

    def _give_back(self, slot: Slot) -> None:
        self._staging.slots.give_back(slot)
