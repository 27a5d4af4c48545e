"""Source ranks that control has told of."""

from dataclasses import dataclass, field, replace

from kvferry.core.backends import Transport
from kvferry.core.errors import InvalidArgument, LayoutInvalid, NotFound, PeerError, ResourceExhausted
from kvferry.core.layouts import validate_layout
from kvferry.core.reasons import Reason
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.negotiation.v1 import negotiation_pb2
from kvferry.rpc.layouts import layout_from_wire
from kvferry_dataplane.leases import WORD_BYTES
from kvferry_dataplane.packed.connection import PackPeer
from kvferry_dataplane.packed.wire import BOOT_ID_BYTES
from kvferry_dataplane.plan import Side
from kvferry_dataplane.transports.memory import Region

PEERS_MAX = 1024
AGENT_METADATA_BYTES_MAX = 64 * 1024
PEER_NAME_CHARS_MAX = 512
HOST_ID_BYTES_MAX = 64
SHARE_SOCKET_CHARS_MAX = 1024
PACK_ENDPOINT_CHARS_MAX = 512
PROBE_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """Bytes behind the pool that anybody may read at any time, under a lease word that always holds."""

    size_bytes: int
    slot: int
    word: int = field(repr=False)


@dataclass(frozen=True, slots=True)
class Peer:
    """One life of one source rank: how to read it and what it holds."""

    name: str
    agent_name: str
    agent_metadata: bytes
    pool: Region
    lease_table: Region
    side: Side
    transport: Transport
    boot_id: bytes = b""
    host_id: bytes = b""
    """Of the kernel that it lives on; empty if it shares nothing."""
    share_socket: str = ""
    pack: PackPeer | None = None
    """Where it packs; None if it does not."""
    pack_slots: Region | None = None
    """Its staging slots, which its agent lets others read; None if it only sends."""
    probe: ProbeTarget | None = None
    """What it lets probes read; None if nothing."""

    @property
    def mapped_bytes(self) -> int:
        """What is mapped of its pool's memory where it is mapped: the pool, and what probes read behind it."""
        return self.pool.size_bytes + (self.probe.size_bytes if self.probe is not None else 0)


class PeerBook:
    """The peers known, by the names that control gave them."""

    def __init__(self, bound: int = PEERS_MAX) -> None:
        self._bound = bound
        self._peers: dict[str, Peer] = {}

    def __len__(self) -> int:
        return len(self._peers)

    def add(self, peer: Peer) -> None:
        """Learn a peer; learning the same again changes nothing.

        Raises:
            InvalidArgument: the name is in use for another life.
            ResourceExhausted: too many peers.
        """
        known = self._peers.get(peer.name)
        if known is not None:
            if known != peer:
                raise InvalidArgument.of_field("peer", peer.name, "is the name of another source rank")
            return
        if len(self._peers) >= self._bound:
            raise ResourceExhausted.of_field("peers_max", self._bound, "too many peers are connected")
        layouts = (other.side.layout for other in self._peers.values())
        # Ranks of one worker share one layout, so that what is planned for it is found by it.
        same = next((layout for layout in layouts if layout == peer.side.layout), peer.side.layout)
        self._peers[peer.name] = replace(peer, side=replace(peer.side, layout=same))

    def get(self, name: str) -> Peer:
        """The peer of that name.

        Raises:
            NotFound: no ConnectPeer came before.
        """
        peer = self._peers.get(name)
        if peer is None:
            raise NotFound.of_field("peer", name, "not connected")
        return peer

    def has(self, name: str) -> bool:
        """Whether a peer is known."""
        return name in self._peers

    def remove(self, name: str) -> Peer | None:
        """Forget a peer."""
        return self._peers.pop(name, None)


def peer_lost(peer: Peer) -> PeerError:
    """A peer that no longer guards its blocks."""
    return PeerError(f"peer {peer.name} has died", reason=Reason.PEER_LOST)


def peer_from_wire(command: pb.ConnectPeer) -> Peer:
    """Check a peer's description.

    Raises:
        InvalidArgument: names the field.
        LayoutInvalid: the layout contradicts itself, leaves the pool, or lacks the rank.
    """
    access = command.access
    if not 1 <= len(command.peer) <= PEER_NAME_CHARS_MAX:
        raise InvalidArgument.of_field("peer", command.peer, f"must have 1 to {PEER_NAME_CHARS_MAX} characters")
    _check_access(access)
    layout = layout_from_wire(command.layout)
    validate_layout(layout, {access.rank: access.pool_bytes})
    if access.rank >= len(layout.ranks):
        raise LayoutInvalid.of_field("access.rank", access.rank, f"the layout has {len(layout.ranks)} ranks")
    host_memory = access.device == "cpu"
    return Peer(
        name=command.peer,
        agent_name=access.agent_name,
        agent_metadata=access.agent_metadata,
        pool=Region("DRAM" if host_memory else "VRAM", access.pool_address, access.pool_bytes, access.device_index),
        lease_table=Region("DRAM", access.lease_table_address, access.lease_slot_count * WORD_BYTES),
        side=Side(layout, access.rank, access.pool_bytes),
        transport=_transport_of(access),
        boot_id=access.boot_id,
        host_id=access.host_id,
        share_socket=access.share_socket,
        pack=_pack_peer(access),
        pack_slots=Region("DRAM", access.pack_slots_address, access.pack_slots_bytes)
        if access.pack_endpoint and access.pack_slots_bytes
        else None,
        probe=_probe_target(access),
    )


def _pack_peer(access: negotiation_pb2.RankAccess) -> PackPeer | None:
    if not access.pack_endpoint:
        return None
    host, _, port = access.pack_endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InvalidArgument.of_field("access.pack_endpoint", access.pack_endpoint, "must be host:port")
    if len(access.pack_endpoint) > PACK_ENDPOINT_CHARS_MAX:
        raise InvalidArgument.of_field(
            "access.pack_endpoint", access.pack_endpoint, f"at most {PACK_ENDPOINT_CHARS_MAX} characters"
        )
    if len(access.boot_id) != BOOT_ID_BYTES:
        raise InvalidArgument.of_field("access.boot_id", f"{len(access.boot_id)} bytes", f"must have {BOOT_ID_BYTES}")
    return PackPeer(access.pack_endpoint, access.boot_id)


def _probe_target(access: negotiation_pb2.RankAccess) -> ProbeTarget | None:
    if not access.probe_bytes:
        return None
    if access.probe_bytes > PROBE_BYTES_MAX:
        raise InvalidArgument.of_field("access.probe_bytes", access.probe_bytes, f"must be 0 to {PROBE_BYTES_MAX}")
    if access.probe_slot >= access.lease_slot_count:
        why = f"the lease table has {access.lease_slot_count} slots"
        raise InvalidArgument.of_field("access.probe_slot", access.probe_slot, why)
    return ProbeTarget(access.probe_bytes, access.probe_slot, access.probe_word)


def _transport_of(access: negotiation_pb2.RankAccess) -> Transport:
    try:
        return Transport(access.backend)
    except ValueError:
        known = ", ".join(Transport)
        raise InvalidArgument.of_field("access.backend", access.backend, f"known are {known}") from None


def _check_access(access: negotiation_pb2.RankAccess) -> None:
    if not 1 <= len(access.agent_metadata) <= AGENT_METADATA_BYTES_MAX:
        raise InvalidArgument.of_field(
            "access.agent_metadata",
            f"{len(access.agent_metadata)} bytes",
            f"must have 1 to {AGENT_METADATA_BYTES_MAX} bytes",
        )
    addresses = {
        "pool": (access.pool_address, access.pool_bytes + access.probe_bytes if access.pool_bytes else 0),
        "lease_table": (access.lease_table_address, access.lease_slot_count * WORD_BYTES),
    }
    if access.pack_slots_bytes:
        addresses["pack_slots"] = (access.pack_slots_address, access.pack_slots_bytes)
    for name, (address, size) in addresses.items():
        if not address or not size or address + size >= 1 << 63:
            raise InvalidArgument.of_field(f"access.{name}_address", address, f"cannot hold {size} bytes")
    _check_share(access)
    if access.device != "cpu" and not access.device.startswith("cuda:"):
        raise InvalidArgument.of_field("access.device", access.device, "must be cpu or cuda:N")


def _check_share(access: negotiation_pb2.RankAccess) -> None:
    if len(access.host_id) > HOST_ID_BYTES_MAX:
        raise InvalidArgument.of_field(
            "access.host_id", f"{len(access.host_id)} bytes", f"at most {HOST_ID_BYTES_MAX} bytes"
        )
    socket = access.share_socket
    if access.host_id and not (socket.startswith("/") and len(socket) <= SHARE_SOCKET_CHARS_MAX):
        raise InvalidArgument.of_field("access.share_socket", socket, "must be an absolute path")
