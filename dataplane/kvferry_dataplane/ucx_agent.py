"""Direct UCX as a transport: each agent is one end of its own, readers get the blocks with one-sided reads.

The source exposes its pool and its lease table and makes progress; what is read, and how much at a time, is the
reader's doing. Within a host UCX (1.22, 1.23) reads another process's memory directly only where it does not watch the
connection for the peer's death, and by messages over TCP where it does. So connections within a host are not watched: a
source that is killed is noticed by the reads that fail.
"""

import os
from dataclasses import dataclass

from kvferry.core.backends import Transport
from kvferry.core.errors import InvalidArgument
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import Window
from kvferry.device.ucx import MemoryKind, RemoteMemory, UcxEnd, UcxLibraryFile, find_ucx
from kvferry_dataplane.sharing.host import host_id
from kvferry_dataplane.transports.memory import Addresses, Region
from kvferry_dataplane.transports.settings import apply_settings, ucx_settings
from kvferry_dataplane.transports.transport import Setting, TransportUse
from kvferry_dataplane.transports.ucx_log import UcxLog
from kvferry_dataplane.ucx_metadata import AgentMetadata, KeyedRegion, pack_metadata, parse_metadata

# What goes wrong comes back as an error and is logged with its context. The last one: settings are shared with NIXL's.
_SETTINGS = {"UCX_LOG_LEVEL": "fatal", "UCX_WARN_UNUSED_ENV_VARS": "n"}
# UCX prints which transport each kind of read uses.
_REPORTING = {"UCX_PROTO_INFO": "y"}
_KINDS = {"DRAM": MemoryKind.HOST, "VRAM": MemoryKind.CUDA}


class UcxLibrary:
    """The UCX that was found. A :class:`~kvferry_dataplane.transports.transport.TransportLibrary`."""

    transport = Transport.UCX

    def __init__(self, *, for_cuda: bool, file: str | None = None) -> None:
        """Find UCX, or take it from ``file``, and set it up.

        Raises:
            ConfigInvalid: there is none.
        """
        self._log = UcxLog(os.environ)
        wanted = _SETTINGS | ucx_settings(for_cuda=for_cuda) | self._log.settings
        # UCX reads some of them when it is loaded.
        settings = apply_settings(wanted | ({} if self._log.refusal else _REPORTING), ("UCX_",))
        self._file = find_ucx(file)
        self.settings = (Setting("ucx_library", self._file.file, from_user=file is not None), *settings)
        self._host = host_id()

    @property
    def version(self) -> str:
        """Of UCX."""
        return ".".join(str(part) for part in self._file.version)

    def make_agent(self, name: str) -> "UcxAgent":
        """An agent, to be used on the calling thread.

        Raises:
            TransportFailed: UCX refuses.
        """
        return UcxAgent(self._file, name, self._host)

    def make_reporting_agent(self, name: str) -> "UcxAgent":
        """As :meth:`make_agent`: every agent reports, and what others have said until now is forgotten."""
        self._log.take()
        return self.make_agent(name)

    def take_use(self, agent_name: str) -> TransportUse:
        """What an agent that reports has used for its reads; UCX does not know the agent's name."""
        return self._log.use_of_one()

    def forget_reports(self) -> None:
        """Forget what UCX has printed."""
        self._log.take()


@dataclass(frozen=True, slots=True)
class _Peer:
    number: int
    regions: tuple[Region, ...]


class UcxAgent:
    """One end. A :class:`~kvferry_dataplane.transports.transport.TransportAgent`."""

    def __init__(self, library: UcxLibraryFile, name: str, host: bytes) -> None:
        self.name = name
        self._release = library.version
        self._host = host
        self._end = UcxEnd(library)
        self._regions: list[Region] = []
        self._peers: dict[str, _Peer] = {}
        self._reads: set[int] = set()

    @property
    def is_reading(self) -> bool:
        """Whether a read was started that is not known to be done."""
        return bool(self._reads)

    def register(self, region: Region) -> None:
        """Make a region readable by peers, and usable as the local side of reads.

        Raises:
            ConfigInvalid: it lies on a GPU, and this UCX knows none.
        """
        self._end.add_region(Window(region.address, region.size_bytes), _KINDS[region.segment])
        self._regions.append(region)

    def metadata(self) -> bytes:
        """What a peer needs to read the registered regions."""
        keyed = tuple(KeyedRegion(region, self._end.region_key(i)) for i, region in enumerate(self._regions))
        return pack_metadata(AgentMetadata(self.name, self._release, self._host, self._end.address(), keyed))

    def add_peer(self, metadata: bytes) -> str:
        """Learn a peer; returns its agent's name.

        Raises:
            InvalidArgument: the bytes are malformed, or the peer is known.
        """
        told = parse_metadata(metadata)
        if told.name in self._peers:
            raise InvalidArgument.of_field("peer", told.name, "is known already")
        same_host = bool(self._host) and told.host == self._host
        number = self._end.connect(
            told.address,
            [RemoteMemory(keyed.region.address, keyed.region.size_bytes, keyed.key) for keyed in told.regions],
            sees_failures=not same_host,
        )
        self._peers[told.name] = _Peer(number, tuple(keyed.region for keyed in told.regions))
        return told.name

    def remove_peer(self, name: str) -> None:
        """Forget a peer."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            self._end.disconnect(peer.number)

    def progress(self) -> None:
        """Let UCX work once. Never blocks."""
        self._end.progress()

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

        Raises:
            InvalidArgument: a run leaves the region, or the peer or a region is not known.
        """
        known = self._peers.get(peer)
        if known is None:
            raise InvalidArgument.of_field("peer", peer, "is not known")
        source, destination = _find("remote", known.regions, remote), _find("local", self._regions, local)
        plan = CopyPlan(
            remote_addresses - known.regions[source].address,
            local_addresses - self._regions[destination].address,
            lengths,
        )
        read = self._end.read(known.number, source, destination, plan)
        self._reads.add(read)
        return read

    def is_done(self, handle: int) -> bool:
        """Make progress and say whether a read is done; a handle that is done is forgotten."""
        done = self._end.is_done(handle)
        if done:
            self._reads.discard(handle)
        return done

    def stop(self, handle: int) -> bool:
        """True: no more of the read is asked for, and it is done once what was has arrived."""
        self._end.cancel(handle)
        return True

    def close(self) -> None:
        """Destroy the worker: after this, none of its reads writes any more."""
        self._end.close()
        self._reads.clear()


def _find(field: str, regions: "tuple[Region, ...] | list[Region]", wanted: Region) -> int:
    """The number of the region that holds another one."""
    end = wanted.address + wanted.size_bytes
    for number, region in enumerate(regions):
        if region.address <= wanted.address and end <= region.address + region.size_bytes:
            return number
    raise InvalidArgument.of_field(field, wanted, "is in none of the registered regions")
