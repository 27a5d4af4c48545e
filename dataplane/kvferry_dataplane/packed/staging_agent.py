"""The agent that reads sources' staging slots into one's own."""

from typing import Protocol

import numpy as np

from kvferry.device.copying import Window
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.reads.lingering import LingeringConnections
from kvferry_dataplane.transports.memory import Region
from kvferry_dataplane.transports.transport import TransportLibrary


class StagingAgent(Protocol):
    """What reads of staging slots need of a transport. Everything may raise PeerError or TransportFailed."""

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        ...

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        ...

    def read(self, peer: Peer, address: int, own_address: int, size_bytes: int) -> int:
        """Start to read; returns a handle."""
        ...

    def is_done(self, handle: int) -> bool:
        """Make progress, and say whether a read has arrived."""
        ...

    def close(self) -> None:
        """Destroy the agent: nothing that it reads arrives after this."""
        ...


class TransportStagingAgent:
    """An agent of a transport whose local side is staging memory."""

    def __init__(self, library: TransportLibrary, name: str, memory: Window, lingering: LingeringConnections) -> None:
        self._lingering = lingering
        self._agent = library.make_agent(name)
        self._memory = Region("DRAM", memory.address, memory.size_bytes)
        self._agent.register(self._memory)

    def connect(self, peer: Peer) -> None:
        """Learn a peer."""
        self._agent.add_peer(peer.agent_metadata)

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer."""
        self._agent.remove_peer(peer.agent_name)

    def read(self, peer: Peer, address: int, own_address: int, size_bytes: int) -> int:
        """Start to read, as one descriptor."""
        assert peer.pack_slots is not None
        return self._agent.post_read(
            peer.agent_name,
            peer.pack_slots,
            np.array([address]),
            self._memory,
            np.array([own_address]),
            np.array([size_bytes]),
        )

    def is_done(self, handle: int) -> bool:
        """Make progress, and say whether a read has arrived."""
        return self._agent.is_done(handle)

    def close(self) -> None:
        """Destroy the agent."""
        with self._lingering.kept(is_reading=True):
            self._agent.close()
