"""A source data plane's memory, mapped in this process for reading."""

import mmap
import os
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from kvferry.core.errors import TransportFailed
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.device.copying import Copier, Window
from kvferry.device.descriptors import is_trusted, peer_of, receive_offer
from kvferry.device.memfd import map_shared_memory, require_sealed
from kvferry_dataplane.leases import WORD_BYTES
from kvferry_dataplane.peers import Peer

OPEN_SECONDS_MAX = 1.0
"""Bound on the conversation with a share socket: a source that was stopped does not answer."""
_DESCRIPTORS_MAX = 2


@dataclass(frozen=True, slots=True)
class MappedPool:
    """A source's pool and one's own, as a copier sees them."""

    source: Window
    destination: Window
    copier: Copier
    backend: str
    """`memory` or `cuda`."""
    unmap: Callable[[], None]


class Mapper(Protocol):
    """Maps pools so that they can be copied to this data plane's own. Any thread may ask."""

    def map_host(self, descriptor: int, size_bytes: int) -> MappedPool:
        """Map host memory, already checked. The descriptor stays the caller's."""
        ...

    def map_cuda(self, handle: bytes, device_uuid: bytes, size_bytes: int) -> MappedPool:
        """Map device memory."""
        ...


class Source:
    """The mapping of one life of one source rank.

    It is opened and closed on any thread; in between it belongs to the reads' thread. Once retired it is closed as soon
    as no copy uses it.
    """

    def __init__(self, connection: socket.socket, words: mmap.mmap, pool: MappedPool) -> None:
        self._connection = connection
        self._end = select.poll()
        self._end.register(connection, select.POLLRDHUP)
        self._words = words
        self._view = memoryview(words).cast("Q")
        self.pool = pool
        self.users = 0
        self.retired = False

    @property
    def connection(self) -> int:
        """Descriptor whose hang-up is the source's end."""
        return self._connection.fileno()

    @property
    def is_alive(self) -> bool:
        """Whether the source still guards its blocks."""
        return not self._end.poll(0)

    def word(self, slot: int) -> int:
        """The lease word in a slot, as it stands.

        The load is of 8 aligned bytes, and so in one piece on the machines that this runs on. A torn one would do no
        harm: no byte of a live word is zero, and a cleared word is zero.
        """
        return self._view[slot]

    def close(self) -> None:
        """Unmap everything. Nothing may be copying from it."""
        self._view.release()
        self._words.close()
        self.pool.unmap()
        self._connection.close()


def open_source(peer: Peer, mapper: Mapper) -> Source:
    """Ask a source of this host for its memory and map it. Takes ``OPEN_SECONDS_MAX`` at most, and the mapping.

    Nothing the other side says is believed: sizes, seals and identity are checked, so that no peer, hostile or
    restarted, can make a read of the mapping fail.

    Raises:
        KvferryError: why the memory cannot be mapped. Nothing is left open.
    """
    try:
        return _open_source(peer, mapper)
    except OSError as error:
        raise TransportFailed(f"out of what the system grants: {error}") from error


def _open_source(peer: Peer, mapper: Mapper) -> Source:
    with ExitStack() as failed:
        connection = failed.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        _connect(connection, peer.share_socket)
        message, descriptors = receive_offer(connection, descriptors_max=_DESCRIPTORS_MAX, timeout_s=OPEN_SECONDS_MAX)
        with ExitStack() as received:
            for descriptor in descriptors:
                received.callback(os.close, descriptor)
            offer = _checked_offer(message, peer)
            expected = 2 if peer.pool.segment == "DRAM" else 1
            if len(descriptors) != expected:
                raise TransportFailed(f"{len(descriptors)} descriptors came with the offer, expected {expected}")
            words = failed.enter_context(_map_words(descriptors[0], peer.lease_table.size_bytes))
            pool = _map_pool(offer, descriptors, mapper, peer.mapped_bytes)
        failed.pop_all()
    return Source(connection, words, pool)


def _connect(connection: socket.socket, path: str) -> None:
    connection.settimeout(OPEN_SECONDS_MAX)
    try:
        connection.connect(path)
        _, uid = peer_of(connection)
    except OSError as error:
        raise TransportFailed(f"its share socket cannot be reached: {error}") from error
    if not is_trusted(uid):
        raise TransportFailed(f"its share socket is another user's: uid {uid}")


def _checked_offer(message: bytes, peer: Peer) -> pb.ShareOffer:
    try:
        offer = pb.ShareOffer.FromString(message)
    except DecodeError as error:
        raise TransportFailed(f"what was offered is no pool: {error}") from error
    if offer.boot_id != peer.boot_id:
        raise TransportFailed("another life of the source listens on its share socket")
    negotiated = {
        "pool_bytes": (offer.pool_bytes, peer.pool.size_bytes),
        "lease_slot_count": (offer.lease_slot_count, peer.lease_table.size_bytes // WORD_BYTES),
        "device": ("DRAM" if offer.device == "cpu" else "VRAM", peer.pool.segment),
    }
    for field, (offered, expected) in negotiated.items():
        if offered != expected:
            raise TransportFailed.of_field(field, offered, f"the source had said {expected}")
    return offer


def _map_words(descriptor: int, size_bytes: int) -> mmap.mmap:
    require_sealed(descriptor, size_bytes)
    return map_shared_memory(descriptor, size_bytes, writable=False)


def _map_pool(offer: pb.ShareOffer, descriptors: tuple[int, ...], mapper: Mapper, size_bytes: int) -> MappedPool:
    if offer.device != "cpu":
        return mapper.map_cuda(offer.cuda_ipc_handle, offer.cuda_device_uuid, size_bytes)
    require_sealed(descriptors[1], size_bytes)
    return mapper.map_host(descriptors[1], size_bytes)
