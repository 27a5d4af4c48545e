"""What a transport has to be able to do: let peers read this data plane's memory, and read theirs."""

from dataclasses import dataclass
from typing import Protocol

from kvferry.core.backends import Transport
from kvferry_dataplane.transports.memory import Addresses, Region


@dataclass(frozen=True, slots=True)
class Setting:
    """One of a library's settings as it holds."""

    name: str
    value: str
    from_user: bool
    """Set by whoever started the process; else chosen here."""


@dataclass(frozen=True, slots=True)
class TransportUse:
    """What a library uses below, by its own report."""

    transport: str
    """For example `cma` or `rc_mlx5`; several are joined by `+`; empty: it did not say."""
    device: str
    """For example `mlx5_0:1`, likewise."""
    how: str
    """For people: how it reads, or why nothing is known."""


class TransportAgent(Protocol):
    """One end of a transport. It has no thread of its own: its owner makes progress.

    Used by one thread only, the one that made it. Everything may raise TransportFailed, and PeerError with reason
    PEER_LOST where the backend knows that a peer is gone.
    """

    @property
    def name(self) -> str:
        """Under which peers know it."""
        ...

    @property
    def is_reading(self) -> bool:
        """Whether a read was started that is not known to be done."""
        ...

    def register(self, region: Region) -> None:
        """Make a region readable by peers, and usable as the local side of reads."""
        ...

    def metadata(self) -> bytes:
        """What a peer needs to read the registered regions; opaque to everybody else."""
        ...

    def add_peer(self, metadata: bytes) -> str:
        """Learn a peer; returns its agent's name."""
        ...

    def remove_peer(self, name: str) -> None:
        """Forget a peer. Nothing of it is in flight."""
        ...

    def progress(self) -> None:
        """Let the backend work once. Never blocks."""
        ...

    def post_read(
        self,
        peer: str,
        remote: Region,
        remote_addresses: Addresses,
        local: Region,
        local_addresses: Addresses,
        lengths: Addresses,
    ) -> int:
        """Start reading runs of bytes; returns a handle for :meth:`is_done`.

        Arrays of one length, with absolute addresses.
        """
        ...

    def is_done(self, handle: int) -> bool:
        """Make progress and say whether a read is done; a handle that is done is forgotten.

        After a failure nobody knows whether bytes may still arrive, before :meth:`close`.
        """
        ...

    def stop(self, handle: int) -> bool:
        """Ask for the early end of a read. False if it cannot be had: the read goes on.

        Otherwise the read is done once nothing of it is in flight.
        """
        ...

    def close(self) -> None:
        """Destroy the agent: after this, none of its reads writes any more. Bounded in time.

        Raises:
            InternalError: it cannot be destroyed; no memory that it read into is safe.
        """
        ...


class TransportLibrary(Protocol):
    """The library behind a transport, as it was found and set up in this process."""

    @property
    def transport(self) -> Transport:
        """Which transport it is."""
        ...

    @property
    def version(self) -> str:
        """Of the library, for people and for comparing two sides, for example `1.5.0`."""
        ...

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What it runs with."""
        ...

    def make_agent(self, name: str) -> TransportAgent:
        """An agent, to be used on the calling thread."""
        ...

    def make_reporting_agent(self, name: str) -> TransportAgent:
        """As :meth:`make_agent`; :meth:`take_use` can tell what it uses. Names are unique within the process."""
        ...

    def take_use(self, agent_name: str) -> TransportUse:
        """What the last agent that was made to report has used for its reads. To be asked once; what else the library
        has said until now is forgotten.
        """
        ...

    def forget_reports(self) -> None:
        """Forget what the library has said: it takes memory. Not while an agent that reports is in use."""
        ...
