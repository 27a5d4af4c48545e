"""Which sources of this host are mapped, over sockets and memory of the tests' own."""

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvferry.core.backends import Transport
from kvferry.core.errors import PeerError, TransportFailed
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.device.copying import Window
from kvferry.device.descriptors import send_offer
from kvferry.device.memfd import SharedMemory, create_shared_memory, reopen_read_only
from kvferry_dataplane.leases import WORD_BYTES
from kvferry_dataplane.paths import PathPolicy
from kvferry_dataplane.peers import Peer
from kvferry_dataplane.plan import Side
from kvferry_dataplane.reads.mailbox import Mailbox
from kvferry_dataplane.sharing.book import SharedSources
from kvferry_dataplane.sharing.source import MappedPool, Source, open_source
from kvferry_dataplane.transports.memory import Region
from tests.unit.dataplane.fakes import LAYOUT

HOST = b"host"
BOOT = b"b" * 16
POOL_BYTES = 1 << 16
SLOTS = 512


class NoCopier:
    """Takes the place of a copier: nothing is copied here."""

    wakes = True

    def submit(self, *_: object, **__: object) -> None:
        """Not asked for."""
        raise AssertionError

    def close(self) -> None:
        """Nothing to close."""


class Mapper:
    """Maps nothing and counts."""

    def __init__(self) -> None:
        self.mapped = 0

    def map_host(self, descriptor: int, size_bytes: int) -> MappedPool:
        """Count a mapping."""
        assert os.fstat(descriptor).st_size >= size_bytes
        return self._one()

    def map_cuda(self, handle: bytes, device_uuid: bytes, size_bytes: int) -> MappedPool:
        """Count a mapping."""
        return self._one()

    def _one(self) -> MappedPool:
        self.mapped += 1

        def unmap() -> None:
            self.mapped -= 1

        window = Window(4096, POOL_BYTES)
        return MappedPool(window, window, NoCopier(), "memory", unmap)  # type: ignore[arg-type]


class Sharer:
    """The share socket of a source, which sends what a test wants."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = create_shared_memory("test-table", SLOTS * WORD_BYTES)
        self.pool = create_shared_memory("test-pool", POOL_BYTES)
        self.offer = pb.ShareOffer(device="cpu", pool_bytes=POOL_BYTES, boot_id=BOOT, lease_slot_count=SLOTS)
        self.descriptors: tuple[int, ...] = tuple(reopen_read_only(each.descriptor) for each in (self.table, self.pool))
        self.connections: list[socket.socket] = []
        self._own = self.descriptors
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def peer(self, name: str = "p") -> Peer:
        """How a reader knows the source."""
        pool, table = Region("DRAM", 4096, POOL_BYTES), Region("DRAM", 4096, SLOTS * WORD_BYTES)
        side = Side(LAYOUT, 0, POOL_BYTES)
        return Peer(name, name, b"m", pool, table, side, Transport.NIXL_UCX, BOOT, HOST, str(self.path))

    def die(self) -> None:
        """End every connection."""
        for connection in self.connections:
            connection.close()

    def close(self) -> None:
        """Stop."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        self.die()
        for descriptor in self._own:
            os.close(descriptor)
        for memory in (self.table, self.pool):
            memory.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections.append(connection)
            send_offer(connection, self.offer.SerializeToString(), self.descriptors)


@pytest.fixture
def sharer(tmp_path: Path) -> Iterator[Sharer]:
    """A source that shares its memory."""
    one = Sharer(tmp_path / "share")
    yield one
    one.close()


class Book:
    """A book of sources and the thread that it belongs to: the test's."""

    def __init__(self, open_one: Callable[[Peer], Source]) -> None:
        self.mailbox = Mailbox()
        self.sources = SharedSources(PathPolicy(), HOST, open_one, self.mailbox)

    def work(self, until: Callable[[], bool]) -> None:
        """Run commands until a condition holds."""
        give_up = time.monotonic() + 10
        while not until():
            assert time.monotonic() < give_up
            self.mailbox.wait(0.05)
            for command in self.mailbox.take():
                command(0.0)

    def close(self) -> None:
        """Unmap everything."""
        self.sources.close()
        self.mailbox.close()


def why_refused(peer: Peer, mapper: Mapper) -> str:
    """Why a source is not mapped."""
    with pytest.raises(TransportFailed) as caught:
        open_source(peer, mapper)
    assert 0 == mapper.mapped
    return caught.value.message


def held_descriptors() -> int:
    """Open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names are enough


def test_words_are_read_where_they_lie(sharer: Sharer) -> None:
    """A lease word that the source writes is seen at once, and so is the source's end; closing leaves nothing."""
    before = held_descriptors()
    mapper = Mapper()
    source = open_source(sharer.peer(), mapper)
    sharer.table.mapping[5 * WORD_BYTES : 6 * WORD_BYTES] = (77).to_bytes(WORD_BYTES, "little")
    assert (77, 0) == (source.word(5), source.word(4))
    alive = [source.is_alive]
    sharer.die()
    alive.append(source.is_alive)
    assert [True, False] == alive
    source.close()
    assert 0 == mapper.mapped
    assert held_descriptors() <= before


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("boot_id", b"another life....", "another life"),
        ("pool_bytes", POOL_BYTES * 2, "pool_bytes"),
        ("lease_slot_count", SLOTS * 2, "lease_slot_count"),
        ("device", "cuda:0", "device"),
    ],
)
def test_an_offer_of_something_else_is_refused(sharer: Sharer, field: str, value: object, expected: str) -> None:
    """An offer of another life, of other sizes or of another kind of memory than was negotiated is refused by name."""
    setattr(sharer.offer, field, value)
    before = held_descriptors()
    assert expected in why_refused(sharer.peer(), Mapper())
    sharer.die()
    assert held_descriptors() <= before


def _unsealed(size_bytes: int) -> int:
    descriptor = os.memfd_create("test-unsealed", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size_bytes)
    return descriptor


@pytest.mark.parametrize("which", [0, 1])
def test_memory_that_can_be_truncated_is_refused(sharer: Sharer, which: int) -> None:
    """A lease table or a pool whose owner could truncate it under its readers is not mapped."""
    descriptor = _unsealed(POOL_BYTES)
    sharer.descriptors = tuple(descriptor if index == which else each for index, each in enumerate(sharer.descriptors))
    assert "can be truncated" in why_refused(sharer.peer(), Mapper())
    os.close(descriptor)


@pytest.mark.parametrize("which", [0, 1])
def test_memory_that_is_too_small_is_refused(sharer: Sharer, which: int) -> None:
    """A sealed lease table or pool that holds less than was offered is not mapped."""
    small: SharedMemory = create_shared_memory("test-small", WORD_BYTES)
    sharer.descriptors = tuple(
        small.descriptor if index == which else each for index, each in enumerate(sharer.descriptors)
    )
    assert f"holds {WORD_BYTES} bytes" in why_refused(sharer.peer(), Mapper())
    small.close()


def test_a_descriptor_too_few_is_refused(sharer: Sharer) -> None:
    """An offer without the pool's descriptor is refused."""
    sharer.descriptors = sharer.descriptors[:1]
    assert "1 descriptors came" in why_refused(sharer.peer(), Mapper())


def test_a_socket_path_that_is_none_is_a_reason(sharer: Sharer) -> None:
    """A path that no socket can have, as a hostile peer may give, is a reason and no defect."""
    peer = sharer.peer()
    for path in ("/with\0zero", "/" + "long" * 100, "/nowhere/at/all"):
        assert "cannot be reached" in why_refused(replace(peer, share_socket=path), Mapper())


def test_too_few_descriptors_are_a_reason(sharer: Sharer) -> None:
    """A process that may open no more descriptors does not map, and says why."""
    peer = sharer.peer()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        why = why_refused(peer, Mapper())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "Too many open files" in why


def test_a_mapped_source_that_dies_is_lost_and_unmapped(sharer: Sharer) -> None:
    """A source is mapped once it is connected, lost when its connection ends, and mapped anew when connected again."""
    mapper = Mapper()
    book = Book(lambda peer: open_source(peer, mapper))
    peer = sharer.peer()
    book.sources.connect(peer)
    # Mapping ends on a thread of its own, a moment before the book knows of it.
    book.work(lambda: book.sources.mapping(peer) is not None)
    assert 1 == mapper.mapped
    assert book.sources.source(peer).is_alive
    sharer.die()
    book.work(lambda: mapper.mapped == 0)
    assert [peer] == book.sources.take_lost()
    book.sources.connect(peer)
    book.work(lambda: mapper.mapped == 1)
    book.close()
    assert 0 == mapper.mapped


def test_a_source_in_use_is_unmapped_after_its_last_copy(sharer: Sharer) -> None:
    """A peer that is forgotten while copies use its memory is unmapped when the last of them is over, not before."""
    mapper = Mapper()
    book = Book(lambda peer: open_source(peer, mapper))
    peer = sharer.peer()
    book.sources.connect(peer)
    book.work(lambda: mapper.mapped == 1 and _is_mapped(book.sources, peer))
    source = book.sources.source(peer)
    source.users += 1
    book.sources.disconnect(peer)
    assert 1 == mapper.mapped
    book.sources.release(source)
    book.work(lambda: mapper.mapped == 0)
    book.close()


def test_what_is_mapped_too_late_is_unmapped(sharer: Sharer) -> None:
    """A mapping that comes when the book is being closed is closed as well."""
    mapper, go = Mapper(), threading.Event()

    def slowly(peer: Peer) -> Source:
        assert go.wait(10)
        return open_source(peer, mapper)

    book = Book(slowly)
    book.sources.connect(sharer.peer())
    threading.Timer(0.2, go.set).start()
    book.close()
    assert 0 == mapper.mapped


def test_a_defect_while_mapping_is_not_waited_for(sharer: Sharer) -> None:
    """What is no error of kvferry's own ends the reads' thread; no read waits for what never comes."""

    def defective(_: Peer) -> Source:
        raise ZeroDivisionError

    book = Book(defective)
    book.sources.connect(sharer.peer())
    with pytest.raises(ZeroDivisionError):
        book.work(lambda: False)
    book.close()


def _is_mapped(sources: SharedSources, peer: Peer) -> bool:
    try:
        sources.source(peer)
    except PeerError:
        return False
    return True
