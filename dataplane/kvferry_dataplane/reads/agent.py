"""What moves blocks and lease words into this data plane; for what a transport reads, a disposable agent.

Destroying the agent of a transport is the only way to stop a read of it that does not end by itself.
"""

from typing import Protocol

import numpy as np

from kvferry.core.planning.copies import CopyPlan
from kvferry_dataplane.leases import WORD_BYTES
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.batches import Batch
from kvferry_dataplane.reads.lingering import LingeringConnections
from kvferry_dataplane.reads.request import ReadPart
from kvferry_dataplane.transports.memory import Region
from kvferry_dataplane.transports.transport import TransportLibrary

_CLOSING_POLLS = 16
CELL_COUNT = 1024
"""Lease words that one agent can read back at a time."""


class ReadAgent(Protocol):
    """What the executor needs of an agent. Everything may raise PeerError or TransportFailed."""

    @property
    def cell_count(self) -> int:
        """Cells for words that are read back."""
        ...

    @property
    def wakes(self) -> bool:
        """Whether all that is under way wakes the reads' thread at its end, so that it need not be polled."""
        ...

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        ...

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        ...

    def read_blocks(self, source: ReadPart, batch: Batch, priority: int, *, awaited: bool = False) -> int:
        """Start a batch of copies into the pool; returns a handle. ``awaited``: its end need wake nobody, since
        :meth:`wait` follows."""
        ...

    def read_word(self, source: ReadPart, cell: int) -> int:
        """Start reading the source's lease word into a cell; returns a handle. Every byte of the part has arrived."""
        ...

    def word(self, cell: int) -> int:
        """What a cell holds."""
        ...

    def is_done(self, handle: int) -> bool:
        """Make progress, and say whether what the handle stands for has arrived, or was stopped."""
        ...

    def wait(self, handle: int, seconds: float) -> None:
        """Wait so long for a batch; returns at once where nothing can be waited for."""
        ...

    def device_seconds(self, handle: int) -> float:
        """How long a device copied for a batch that is done, on its own clock; 0 if none did. To be asked once."""
        ...

    def stop(self, handle: int) -> bool:
        """Ask for the early end of a batch. False if it cannot be had: the batch goes on."""
        ...

    def close(self) -> None:
        """Destroy the agent: nothing it started arrives after this."""
        ...


class TransportReadAgent:
    """An agent of a transport that reads into ``pool``."""

    def __init__(self, library: TransportLibrary, name: str, pool: Region, lingering: LingeringConnections) -> None:
        self._lingering = lingering
        self._agent = library.make_agent(name)
        self._pool = pool
        self._cells = np.zeros(CELL_COUNT, dtype=np.uint64)
        self._cell_region = Region("DRAM", self._cells.ctypes.data, self._cells.nbytes)
        self._agent.register(pool)
        self._agent.register(self._cell_region)

    @property
    def cell_count(self) -> int:
        """Cells for words that are read back."""
        return CELL_COUNT

    @property
    def wakes(self) -> bool:
        """False: transports have to be polled."""
        return False

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        self._agent.add_peer(peer.agent_metadata)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self._agent.remove_peer(peer.agent_name)
        # The backend closes the connection in steps, and an agent without reads in flight is polled by nobody else.
        for _ in range(_CLOSING_POLLS):
            self._agent.progress()

    def read_blocks(self, source: ReadPart, batch: Batch, priority: int, *, awaited: bool = False) -> int:
        """Start a batch of copies into the pool; transports know no priorities."""
        assert isinstance(batch, CopyPlan)
        peer = source.peer
        return self._agent.post_read(
            peer.agent_name,
            peer.pool,
            batch.source_offsets + peer.pool.address,
            self._pool,
            batch.destination_offsets + self._pool.address,
            batch.lengths,
        )

    def read_word(self, source: ReadPart, cell: int) -> int:
        """Start reading a lease word into a cell, zeroed before."""
        peer, slot = source.peer, source.slot
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

    def wait(self, handle: int, seconds: float) -> None:
        """Nothing: transports have to be polled."""

    def device_seconds(self, handle: int) -> float:
        """0: transports do not say."""
        return 0.0

    def stop(self, handle: int) -> bool:
        """Whether the transport can end a read early: then it asks for no more of it."""
        return self._agent.stop(handle)

    def close(self) -> None:
        """Destroy the agent."""
        with self._lingering.kept(is_reading=self._agent.is_reading):
            self._agent.close()
