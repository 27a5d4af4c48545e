"""Streams from and into windows of memory."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from kvferry.core.errors import InvalidArgument
from kvferry.device.copying import Window
from kvferry.device.native import CancelFlag, stream_discard, stream_receive, stream_send
from kvferry.device.streams import StreamEnd

Bytes = npt.NDArray[np.uint8]
NONE = np.empty(0, dtype=np.int64)
NOWHERE = Window(0, 0)


def window(memory: Bytes) -> Window:
    """An array as a window."""
    return Window(memory.ctypes.data, memory.nbytes)


def numbers(*values: int) -> npt.NDArray[np.int64]:
    """Offsets or lengths."""
    return np.array(values, dtype=np.int64)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        yield one, other


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=3000), st.integers(0, 100))
def test_every_piece_arrives_in_its_place(lengths: list[int], edge_bytes: int) -> None:
    """Pieces of any length, more than one call can carry, come out at other offsets, with what is before and after."""
    runs = numbers(*lengths)
    starts = np.cumsum(runs) - runs
    total = int(runs.sum())
    source = np.random.default_rng(0).integers(0, 256, total + 1, dtype=np.uint8)
    destination = np.zeros(total + 1, dtype=np.uint8)
    backwards = total - starts - runs
    edge = bytes(range(edge_bytes))
    one, other = socket.socketpair()
    with one, other:

        def send() -> None:
            stream_send(one.fileno(), b"", window(source), starts, runs, limit_s=10.0)
            stream_send(one.fileno(), edge, NOWHERE, NONE, NONE, limit_s=10.0)

        sender = threading.Thread(target=send)
        sender.start()
        outcome, suffix = stream_receive(
            other.fileno(), window(destination), backwards, runs, suffix_bytes=edge_bytes, limit_s=10.0
        )
        sender.join()
    assert (StreamEnd.COMPLETE, total + edge_bytes) == (outcome.end, outcome.moved_bytes)
    assert edge == suffix
    for start, back, length in zip(starts, backwards, runs, strict=True):
        assert np.array_equal(source[start : start + length], destination[back : back + length])


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (0, 101), (100, 1), (1 << 62, 1 << 62), (50, (1 << 63) - 1), (0, -1), (101, 0)]
)
def test_a_piece_outside_the_window_moves_nothing(
    pair: tuple[socket.socket, socket.socket], offset: int, length: int
) -> None:
    """Bounds are checked in native code before the first byte, in both directions."""
    memory = np.zeros(100, dtype=np.uint8)
    offsets, lengths = numbers(0, offset), numbers(1, length)
    with pytest.raises(InvalidArgument):
        stream_send(pair[0].fileno(), b"head", window(memory), offsets, lengths, limit_s=1.0)
    with pytest.raises(InvalidArgument):
        stream_receive(pair[1].fileno(), window(memory), offsets, lengths, suffix_bytes=0, limit_s=1.0)
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)


def test_a_limit_ends_both_directions(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nothing comes, or nothing is taken: the call ends in time and says how far it came."""
    memory = np.zeros(64 << 20, dtype=np.uint8)
    outcome, _ = stream_receive(pair[1].fileno(), NOWHERE, NONE, NONE, suffix_bytes=8, limit_s=0.05)
    assert (StreamEnd.TIMED_OUT, 0) == (outcome.end, outcome.moved_bytes)
    sent = stream_send(pair[0].fileno(), b"", window(memory), numbers(0), numbers(memory.nbytes), limit_s=0.2)
    assert StreamEnd.TIMED_OUT == sent.end
    assert 0 < sent.moved_bytes < memory.nbytes


def test_a_raised_flag_ends_a_receive_that_sleeps(pair: tuple[socket.socket, socket.socket]) -> None:
    """Another thread raises the flag and writes to the eventfd; nothing is written to the window after that."""
    memory = np.zeros(1000, dtype=np.uint8)
    flag, wake = CancelFlag(), os.eventfd(0, os.EFD_NONBLOCK)
    pair[0].sendall(b"x" * 10)

    def cancel() -> None:
        while not memory[9]:
            time.sleep(0.001)
        # Meant for another transfer: this one goes on.
        os.eventfd_write(wake, 1)
        flag.raise_()
        os.eventfd_write(wake, 1)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    outcome, _ = stream_receive(
        pair[1].fileno(),
        window(memory),
        numbers(0),
        numbers(1000),
        suffix_bytes=0,
        limit_s=-1.0,
        flag=flag,
        wake_descriptor=wake,
    )
    canceller.join()
    os.close(wake)
    pair[0].sendall(b"y" * 990)
    assert (StreamEnd.CANCELLED, 10) == (outcome.end, outcome.moved_bytes)
    assert not memory[10:].any()
    assert flag.raised


def test_the_end_of_a_connection_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    """An orderly close is CLOSED without an error number, a broken connection with one."""
    pair[0].close()
    outcome, _ = stream_receive(pair[1].fileno(), NOWHERE, NONE, NONE, suffix_bytes=8, limit_s=5.0)
    assert (StreamEnd.CLOSED, 0) == (outcome.end, outcome.error_number)
    assert StreamEnd.CLOSED == stream_discard(pair[1].fileno(), 10, limit_s=5.0).end
    broken = [stream_send(pair[1].fileno(), b"x", NOWHERE, NONE, NONE, limit_s=5.0) for _ in range(50)][-1]
    assert StreamEnd.CLOSED == broken.end
    assert 0 < broken.error_number


def test_what_is_discarded_leaves_the_rest(pair: tuple[socket.socket, socket.socket]) -> None:
    """Exactly so many bytes are thrown away."""
    pair[0].sendall(bytes(100_000) + b"rest")
    assert 100_000 == stream_discard(pair[1].fileno(), 100_000, limit_s=5.0).moved_bytes
    assert b"rest" == pair[1].recv(100)
