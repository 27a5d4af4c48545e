"""NIXL on libfabric: over TCP, or EFA and Slingshot where libfabric has them.

Some things differ from NIXL on UCX. A call may wait for its peer, so calls are bounded. A failure is told to whoever
looks next, whichever read that is about, so failures are looked for apart from reads, which NIXL then fails by itself.
A peer introduces itself to an agent once, so agents forget nobody whom they have met; libfabric connects anew without.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from kvferry.core.backends import Transport
from kvferry.core.errors import ConfigInvalid, KvferryError, PeerError, TransportFailed
from kvferry.core.reasons import Reason
from kvferry_dataplane.nixl_agent import NixlAgent, NixlLibrary
from kvferry_dataplane.transports.call_bounds import CallBounds
from kvferry_dataplane.transports.libfabric import load_libfabric
from kvferry_dataplane.transports.memory import Addresses, Region

CALL_SECONDS = 0.5
"""A peer that has not answered for so long in a call is given up: short, since all reads wait for the call."""


class LibfabricLibrary(NixlLibrary):
    """NIXL with what its LIBFABRIC plugin needs."""

    transport = Transport.NIXL_LIBFABRIC
    setting_prefixes = ("FI_", "NIXL_")

    def __init__(self, *, for_cuda: bool, cuda_major: int | None) -> None:
        """Load libfabric and the rest, then import the wheel.

        Raises:
            ConfigInvalid: something is missing.
        """
        loaded = load_libfabric(self.wheels_for(cuda_major if for_cuda else None))
        self.bounds = CallBounds(loaded.library, CALL_SECONDS)
        super().__init__((loaded.wheel,), {"NIXL_LOG_LEVEL": "FATAL"} | loaded.settings)

    def make_agent(self, name: str) -> NixlAgent:
        """An agent, to be used on the calling thread.

        Raises:
            TransportFailed: libfabric refuses.
            ConfigInvalid: the calls of the agent would not be bounded.
        """
        before = self.bounds.endpoint_count
        try:
            agent = LibfabricAgent(self, name)
        except TransportFailed as error:
            why = f"{error.message}; libfabric's tcp provider needs an interface with an address besides the loopback"
            raise TransportFailed(why) from error
        if self.bounds.endpoint_count == before:
            agent.close()
            raise ConfigInvalid.of_field("nixl_backend", "LIBFABRIC", "NIXL does not call libfabric as it used to")
        return agent

    def translate(self, action: str, error: Exception) -> KvferryError:
        """PEER_LOST where a bound was met."""
        if self.bounds.take_timed_out():
            return PeerError(f"{action}: no answer in {CALL_SECONDS:g} s", reason=Reason.PEER_LOST)
        return super().translate(action, error)


class LibfabricAgent(NixlAgent):
    """An agent on libfabric."""

    def __init__(self, library: LibfabricLibrary, name: str) -> None:
        super().__init__(library, name)
        self._bounds = library.bounds
        self._known: dict[bytes, str] = {}
        """Names of peers by their metadata."""

    def add_peer(self, metadata: bytes) -> str:
        """Learn a peer; returns its agent name.

        Raises:
            PeerError: it does not answer.
        """
        if metadata not in self._known:
            with self._about_one(waits=True):
                try:
                    self._known[metadata] = super().add_peer(metadata)
                except PeerError:
                    # NIXL takes what it has begun for a connection: a second time succeeds at once, and can be undone.
                    super().remove_peer(super().add_peer(metadata))
                    raise
        return self._known[metadata]

    def remove_peer(self, name: str) -> None:
        """Nothing: NIXL would wait in vain for a peer to introduce itself once more when it is learned again."""

    def post_read(
        self,
        peer: str,
        remote: Region,
        remote_addresses: Addresses,
        local: Region,
        local_addresses: Addresses,
        lengths: Addresses,
    ) -> int:
        """Start reading runs of bytes; returns a handle for :meth:`is_done`. Arrays of one length, absolute addresses.

        Raises:
            PeerError: reason PEER_LOST, the peer does not answer or its connection broke.
        """
        try:
            # The first read of a peer waits until that has answered what add_peer sent.
            with self._about_one(waits=True):
                return super().post_read(peer, remote, remote_addresses, local, local_addresses, lengths)
        except TransportFailed as error:
            raise _broken(error) from error

    def is_done(self, handle: int) -> bool:
        """Make progress and say whether a read is done; a handle that is done is forgotten.

        Raises:
            PeerError: reason PEER_LOST. Whether bytes may still arrive is not known before :meth:`close`.
        """
        try:
            with self._about_one(waits=False):
                return super().is_done(handle)
        except TransportFailed as error:
            raise _broken(error) from error

    @contextmanager
    def _about_one(self, *, waits: bool) -> Iterator[None]:
        """What is called within concerns one peer or read, and no failure of another."""
        self._bounds.begin_particular(waits=waits)
        try:
            yield
        finally:
            if self._bounds.end_particular():
                self._tell_failures()

    def _tell_failures(self) -> None:
        """Have NIXL fail the reads that libfabric has told about; it is told one descriptor at a time."""
        until = time.monotonic() + CALL_SECONDS
        while time.monotonic() < until:
            try:
                self.progress()
            except KvferryError:
                continue
            return


def _broken(error: TransportFailed) -> PeerError:
    return PeerError(f"{error.message}: the connection broke", reason=Reason.PEER_LOST)
