"""Connections of an agent that is destroyed are kept, all of them, and only they."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kvferry_dataplane.reads.lingering import Held, LingeringConnections, hold_connections

COUNT = 3


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Connected TCP sockets, ours and the other side's."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        made = []
        for _ in range(COUNT):
            ours = stack.enter_context(socket.create_connection(listener.getsockname()))
            made.append((ours, stack.enter_context(listener.accept()[0])))
        yield made


def held_of(pairs: list[tuple[socket.socket, socket.socket]]) -> Held:
    """What is held of these; what earlier tests left in this process may end at any moment."""
    names = {end.getsockname() for pair in pairs for end in pair}
    held = hold_connections().connections
    for connection in held:
        if connection.getsockname() not in names:
            connection.close()
    return Held(tuple(connection for connection in held if connection.fileno() >= 0))


def test_every_connection_that_was_closed_is_kept(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Whatever their numbers, connections whose first descriptor was closed stay open for the other side."""
    # So that free numbers lie between and below those of the sockets, as in a process that closed files.
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
    for number in spare:
        os.close(number)
    lingering = LingeringConnections()
    held = held_of(pairs)
    for ours, _ in pairs:
        ours.close()
    assert COUNT == lingering.keep(held)
    for _, other in pairs:
        other.settimeout(0.2)
        with pytest.raises(TimeoutError):
            other.recv(1)


def test_connections_in_use_are_let_go(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Those whose first descriptor is open still are nobody's business."""
    lingering = LingeringConnections()
    assert 0 == lingering.keep(held_of(pairs))
    ours, other = pairs[0]
    ours.sendall(b"x")
    assert b"x" == other.recv(1)
