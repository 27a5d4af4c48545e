"""NIXL reads of sources' staging slots into one's own, which can be given up."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from kvferry.core.errors import KvferryError
from kvferry_dataplane.packed.staging import Slot
from kvferry_dataplane.packed.staging_agent import StagingAgent
from kvferry_dataplane.peers import Peer

_log = structlog.get_logger("kvferry.dataplane.packed")


class AgentOutlivesError(Exception):
    """An agent could not be destroyed: no staging slot is safe from it, so the process has to end."""


@dataclass(eq=False, slots=True)
class StagingRead:
    """A read under way, or arrived. It touches nothing but its slot."""

    peer: Peer
    address: int
    slot: Slot
    size_bytes: int
    handle: int = 0
    done: bool = False
    failure: KvferryError | None = None
    """Then its slot is not its owner's any more."""
    given_up_at: float | None = None
    at_end: Callable[[], None] = lambda: None
    """Called when one that was given up can write no more."""


class StagingReads:
    """Belongs to the reads' thread.

    A read that is given up goes on; its slot is free once it is confirmed. If that takes too long, or one has failed,
    nothing but the end of the agent can stop it: the agent is destroyed, and what others still want is read again by a
    new one. That does no harm, since only staging slots are written.
    """

    def __init__(
        self, make_agent: Callable[[int], StagingAgent], give_back: Callable[[Slot], None], lost_seconds: float
    ) -> None:
        """``make_agent`` is given the agent's number, from 1; ``give_back`` takes the slots of reads given up."""
        self._make_agent = make_agent
        self._give_back = give_back
        self._lost_seconds = lost_seconds
        self._agent: StagingAgent | None = None
        self._peers: dict[str, Peer] = {}
        self._leaving: set[str] = set()
        self._reads: list[StagingRead] = []
        self._failed: list[StagingRead] = []
        self.agents_made = 0

    def start(self, peer: Peer, address: int, slot: Slot, size_bytes: int) -> StagingRead:
        """Begin to read into a slot; whether that fails is told like any later failure."""
        read = StagingRead(peer, address, slot, size_bytes)
        self._reads.append(read)
        self._post(read)
        return read

    def give_up(self, read: StagingRead, now: float, at_end: Callable[[], None]) -> None:
        """Nobody waits for a read any more; one that has arrived gives its slot back at once."""
        if read.failure is None:
            read.given_up_at = now
            read.at_end = at_end
            if read.done:
                self._end(read)

    def forget(self, peer: Peer) -> None:
        """Forget a peer, as soon as nothing is read from it."""
        self._leaving.add(peer.agent_name)

    def poll(self, now: float) -> None:
        """Make progress."""
        for read in list(self._reads):
            try:
                if self._agent is not None and self._agent.is_done(read.handle):
                    self._arrived(read)
            except KvferryError as error:
                self._fail(read, error)
        lost = [r for r in self._reads if r.given_up_at is not None and now >= r.given_up_at + self._lost_seconds]
        if self._failed or lost:
            self._start_over()
        self._let_go()

    def close(self) -> None:
        """Destroy the agent."""
        agent, self._agent = self._agent, None
        if agent is not None:
            agent.close()

    def _post(self, read: StagingRead) -> None:
        try:
            if self._agent is None:
                self.agents_made += 1
                self._agent = self._make_agent(self.agents_made)
            if read.peer.agent_name not in self._peers:
                self._agent.connect(read.peer)
                self._peers[read.peer.agent_name] = read.peer
            self._leaving.discard(read.peer.agent_name)
            read.handle = self._agent.read(read.peer, read.address, read.slot.host.address, read.size_bytes)
        except KvferryError as error:
            self._fail(read, error)

    def _fail(self, read: StagingRead, error: KvferryError) -> None:
        error.let_go()
        self._reads.remove(read)
        self._failed.append(read)
        read.failure = error

    def _arrived(self, read: StagingRead) -> None:
        self._reads.remove(read)
        read.done = True
        if read.given_up_at is not None:
            self._end(read)

    def _end(self, read: StagingRead) -> None:
        self._give_back(read.slot)
        read.at_end()

    def _start_over(self) -> None:
        _log.warning("staging agent given up", failed=len(self._failed), reads=len(self._reads))
        try:
            self.close()
        except KvferryError as error:
            raise AgentOutlivesError(error.message) from None
        self._peers.clear()
        ended = [*self._failed, *(read for read in self._reads if read.given_up_at is not None)]
        self._failed.clear()
        self._reads = [read for read in self._reads if read.given_up_at is None]
        for read in ended:
            self._end(read)
        for read in list(self._reads):
            self._post(read)

    def _let_go(self) -> None:
        for name in self._leaving - {read.peer.agent_name for read in self._reads}:
            self._leaving.discard(name)
            peer = self._peers.pop(name, None)
            if peer is None or self._agent is None:
                continue
            try:
                self._agent.disconnect(peer)
            except KvferryError as error:
                _log.warning("a peer was not forgotten", peer=peer.name, message=error.message)
