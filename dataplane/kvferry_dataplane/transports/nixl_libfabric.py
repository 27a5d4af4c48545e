"""NIXL on libfabric: over TCP, or EFA and Slingshot where libfabric has them.

Three things differ from NIXL on UCX. A call may wait for its peer, so every call is bounded. One peer's failure is told
to whoever looks next, whichever read he asked about, so an error is believed only once it stays. And a connection that
could not be made is kept as if it had been.
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
        self.bounds = CallBounds(loaded.library)
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

    @contextmanager
    def translated(self, action: str) -> Iterator[None]:
        """Bound what is called within, and turn NIXL's exceptions into kvferry's.

        Raises:
            PeerError: reason PEER_LOST, when the bound was met.
            TransportFailed: anything else.
        """
        self.bounds.begin(CALL_SECONDS)
        try:
            with super().translated(action):
                yield
        except TransportFailed as error:
            if self.bounds.end():
                raise PeerError(f"{action}: no answer in {CALL_SECONDS:g} s", reason=Reason.PEER_LOST) from error
            raise
        finally:
            self.bounds.end()


class LibfabricAgent(NixlAgent):
    """An agent on libfabric."""

    def add_peer(self, metadata: bytes) -> str:
        """Learn a peer; returns its agent name.

        Raises:
            PeerError: it does not answer.
        """
        try:
            return super().add_peer(metadata)
        except PeerError:
            # The plugin takes what it has begun for a connection: the second time succeeds at once, and can be undone.
            self.remove_peer(super().add_peer(metadata))
            raise

    def is_done(self, handle: int) -> bool:
        """Make progress and say whether a read is done; a handle that is done is forgotten.

        Raises:
            PeerError: reason PEER_LOST. Whether bytes may still arrive is not known before :meth:`close`.
        """
        try:
            return super().is_done(handle)
        except TransportFailed:
            self._take_errors()
        try:
            return super().is_done(handle)
        except TransportFailed as error:
            raise PeerError(f"{error.message}: the connection broke", reason=Reason.PEER_LOST) from error

    def _take_errors(self) -> None:
        """Have libfabric tell all the failures that it keeps, of whichever read; there is one for each descriptor."""
        until = time.monotonic() + CALL_SECONDS
        while time.monotonic() < until:
            try:
                self.progress()
            except KvferryError:
                continue
            return
