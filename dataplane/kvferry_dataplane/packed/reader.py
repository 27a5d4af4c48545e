"""Reads chunks from sources that pack."""

from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.packed.bounds import ReaderBounds
from kvferry_dataplane.packed.connection import PackConnection, PackPeer
from kvferry_dataplane.packed.job import LeaseClaim, PackJob
from kvferry_dataplane.packed.sink import ChunkSink


class PackReader:
    """The pack connections of one data plane, one for each source that was read. Used by one thread."""

    def __init__(self, sink: ChunkSink, wake: int = -1, bounds: ReaderBounds | None = None) -> None:
        """``wake``: an eventfd that gets 1 at the end of every job; -1 for none."""
        self._sink = sink
        self._wake = wake
        self._bounds = bounds or ReaderBounds()
        self._connections: dict[PackPeer, PackConnection] = {}

    def read(self, peer: PackPeer, claim: LeaseClaim, batch: CopyPlan) -> PackJob:
        """Start reading a chunk: offsets of ``batch`` are relative to the two pools.

        A connection that failed is made anew; that it failed is told by the jobs that were on it.

        Raises:
            MessageTooLarge: the batch is too large for one request.
            ResourceExhausted: too many requests are in flight.
        """
        connection = self._connections.get(peer)
        if connection is not None and connection.has_ended:
            self.disconnect(peer)
            connection = None
        if connection is None:
            connection = self._connections[peer] = PackConnection(peer, self._sink, self._wake, self._bounds)
        return connection.ask(claim, batch)

    def disconnect(self, peer: PackPeer) -> None:
        """Close a source's connection, if there is one."""
        connection = self._connections.pop(peer, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close every connection: no job writes after this."""
        for peer in list(self._connections):
            self.disconnect(peer)
