"""What a source does about connections that break the rules."""

import socket
import struct
from collections.abc import Callable

import numpy as np
import pytest

from kvferry_dataplane.packed import wire
from kvferry_dataplane.packed.bounds import ServerBounds
from tests.unit.dataplane.packed.ends import BOOT_ID, CLAIM, SLOT, WORD, Reader, Source, shuffled, wait_until

MakeSource = Callable[..., Source]


def is_closed(connection: socket.socket) -> bool:
    """Wait for the end of a connection, whatever comes before it."""
    connection.settimeout(10.0)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def greeted(source: Source) -> socket.socket:
    """A connection that has said hello."""
    connection = source.connect()
    connection.sendall(wire.hello(BOOT_ID))
    assert wire.Status.OK == wire.parse_welcome(connection.recv(wire.WELCOME_BYTES, socket.MSG_WAITALL))
    return connection


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\0" * 100, b"\xff" * 4096])
def test_garbage_ends_the_connection_and_nothing_else(
    make_source: MakeSource, make_reader: Callable[..., Reader], garbage: bytes
) -> None:
    """Bytes that are no hello are answered with the end; other readers are served."""
    source, reader = make_source(), make_reader()
    with source.connect() as connection:
        connection.sendall(garbage)
        assert is_closed(connection)
    reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(4, 4096)))
    wait_until(lambda: source.server.connection_count == 1)


def test_a_slow_stranger_is_dropped(make_source: MakeSource) -> None:
    """Who says hello byte by byte, or nothing after it, is gone when a stranger's time is over."""
    source = make_source(bounds=ServerBounds(stranger_seconds=0.2))
    with source.connect() as silent, greeted(source) as polite:
        silent.sendall(wire.hello(BOOT_ID)[:5])
        assert is_closed(silent)
        assert is_closed(polite)
    wait_until(lambda: source.server.connection_count == 0)


def test_a_request_that_never_becomes_whole_is_dropped(make_source: MakeSource) -> None:
    """A header that announces pieces has to be followed by them in time."""
    source = make_source(bounds=ServerBounds(message_seconds=0.1))
    with greeted(source) as connection:
        request = wire.encode_request(0, SLOT, WORD, np.zeros(100, dtype=np.int64), np.ones(100, dtype=np.int64))
        connection.sendall(request[:-1])
        assert is_closed(connection)


def test_a_request_that_announces_too_much_is_dropped_unread(make_source: MakeSource) -> None:
    """No memory is taken for what a header merely announces."""
    source = make_source()
    with greeted(source) as connection:
        connection.sendall(struct.pack("<QQQIII4x", 0, WORD, 10, SLOT, 0xFFFFFFFF, 10))
        assert is_closed(connection)


def test_guessing_words_ends_the_connection(make_source: MakeSource) -> None:
    """So many wrong words in a row are no mistake."""
    source = make_source(bounds=ServerBounds(refusals_max=3))
    with greeted(source) as connection:
        one = np.ones(1, dtype=np.int64)
        for number in range(3):
            connection.sendall(wire.encode_request(number, SLOT, WORD + 1 + number, one, one))
            answer = wire.parse_answer(connection.recv(wire.ANSWER_BYTES, socket.MSG_WAITALL))
            assert (number, wire.Status.FENCED, 0) == answer
        assert is_closed(connection)


def test_strangers_do_not_keep_readers_out(make_source: MakeSource, make_reader: Callable[..., Reader]) -> None:
    """The oldest stranger makes room for the next connection, so a crowd of them shuts nobody out."""
    source, reader = make_source(bounds=ServerBounds(strangers_max=2, stranger_seconds=60.0)), make_reader()
    crowd = [source.connect() for _ in range(6)]
    reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(4, 4096)))
    assert source.server.connection_count <= 3 + 2
    for connection in crowd:
        connection.close()


def test_connections_are_bounded(make_source: MakeSource, make_reader: Callable[..., Reader]) -> None:
    """Past the bound a connection is closed at once, and those that are open go on."""
    source, reader = make_source(bounds=ServerBounds(connections_max=1)), make_reader()
    reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(4, 4096)))
    with source.connect() as late:
        assert is_closed(late)
    reader.finish(reader.reader.read(source.peer, CLAIM, shuffled(4, 4096)))


def test_a_reader_that_does_not_read_is_dropped(make_source: MakeSource) -> None:
    """An answer that is not taken in time costs the connection, not the source."""
    source = make_source(size_bytes=64 << 20, bounds=ServerBounds(send_seconds=0.2))
    with greeted(source) as connection:
        total = np.array([64 << 20], dtype=np.int64)
        connection.sendall(wire.encode_request(0, SLOT, WORD, np.zeros(1, dtype=np.int64), total))
        wait_until(lambda: source.server.connection_count == 0)


def test_close_ends_connections_in_the_middle(make_source: MakeSource) -> None:
    """A source that shuts down does not wait for its readers."""
    source = make_source(size_bytes=64 << 20)
    with greeted(source) as connection:
        total = np.array([64 << 20], dtype=np.int64)
        connection.sendall(wire.encode_request(0, SLOT, WORD, np.zeros(1, dtype=np.int64), total))
        assert wire.Status.OK == wire.parse_answer(connection.recv(wire.ANSWER_BYTES, socket.MSG_WAITALL))[1]
        source.server.close()
        assert 0 == source.server.connection_count
