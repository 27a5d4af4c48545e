"""The disposable agent that reads. Destroying it is the only way to stop a read that does not end by itself."""

from typing import Protocol

import numpy as np

from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.nixl_agent import NixlAgent, NixlLibrary, Region
from kvferry_dataplane.paths import BatchLimits, Path, Route
from kvferry_dataplane.peers import WORD_BYTES, Peer
from kvferry_dataplane.reads.lingering import LingeringConnections, hold_connections
from kvferry_dataplane.reads.request import ReadPart

NIXL_LIMITS = BatchLimits(bytes_max=32 << 20, pieces_max=1024, in_flight=2)
CELL_COUNT = 1024
"""Lease words that one agent can read back at a time."""


class ReadAgent(Protocol):
    """What the executor needs of an agent. Everything may raise PeerError or TransportFailed."""

    @property
    def cell_count(self) -> int:
        """Cells for words that are read back."""
        ...

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        ...

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        ...

    def route(self, part: ReadPart, piece_count: int) -> Route:
        """Which path a part of a read takes that has about so many pieces.

        Raises:
            TransportFailed: the configured path is impossible.
        """
        ...

    def read_blocks(self, part: ReadPart, route: Route, batch: CopyPlan) -> int:
        """Start a batch of copies into the pool; returns a handle."""
        ...

    def stop(self, handle: int) -> None:
        """Nobody wants that batch any more: end it early, if that is possible. It is still to be asked for."""
        ...

    def carried(self, part: ReadPart, route: Route, piece_count: int, seconds: float) -> None:
        """A part of a read has arrived as a whole, and took so long."""
        ...

    def read_word(self, peer: Peer, slot: int, cell: int) -> int:
        """Start reading a peer's lease word into a cell, zeroed before; returns a handle."""
        ...

    def word(self, cell: int) -> int:
        """What a cell holds."""
        ...

    def is_done(self, handle: int) -> bool:
        """Make progress, and say whether what the handle stands for has arrived."""
        ...

    def close(self) -> None:
        """Destroy the agent: nothing it started arrives after this."""
        ...


class NixlReadAgent:
    """A NIXL agent that reads into ``pool``."""

    def __init__(self, library: NixlLibrary, name: str, pool: Region, lingering: LingeringConnections) -> None:
        self._lingering = lingering
        self._agent = NixlAgent(library, name)
        self._pool = pool
        self._cells = np.zeros(CELL_COUNT, dtype=np.uint64)
        self._cell_region = Region("DRAM", self._cells.ctypes.data, self._cells.nbytes)
        self._agent.register(pool)
        self._agent.register(self._cell_region)

    @property
    def cell_count(self) -> int:
        """Cells for words that are read back."""
        return CELL_COUNT

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        self._agent.add_peer(peer.agent_metadata)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self._agent.remove_peer(peer.agent_name)

    def route(self, part: ReadPart, piece_count: int) -> Route:
        """This path."""
        return Route(Path.NIXL, part.peer.backend, "", NIXL_LIMITS)

    def stop(self, handle: int) -> None:
        """Nothing but the end of the agent stops a read."""

    def carried(self, part: ReadPart, route: Route, piece_count: int, seconds: float) -> None:
        """Nothing depends on it."""

    def read_blocks(self, part: ReadPart, route: Route, batch: CopyPlan) -> int:
        """Start a batch of copies into the pool."""
        peer = part.peer
        return self._agent.post_read(
            peer.agent_name,
            peer.pool,
            batch.source_offsets + peer.pool.address,
            self._pool,
            batch.destination_offsets + self._pool.address,
            batch.lengths,
        )

    def read_word(self, peer: Peer, slot: int, cell: int) -> int:
        """Start reading a lease word into a cell."""
        self._cells[cell] = 0
        return self._agent.post_read(
            peer.agent_name,
            peer.lease_table,
            np.array([peer.lease_table.address + slot * WORD_BYTES]),
            self._cell_region,
            np.array([self._cell_region.address + cell * WORD_BYTES]),
            np.array([WORD_BYTES]),
        )

    def word(self, cell: int) -> int:
        """What a cell holds."""
        return int(self._cells[cell])

    def is_done(self, handle: int) -> bool:
        """Make progress, and say whether it has arrived."""
        return self._agent.is_done(handle)

    def close(self) -> None:
        """Destroy the agent."""
        held = hold_connections()
        try:
            self._agent.close()
        finally:
            self._lingering.keep(held)
