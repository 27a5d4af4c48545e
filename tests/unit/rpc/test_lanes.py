"""Frames of a lane: how they are cut out of what arrives, and when more may be sent."""

import asyncio
from typing import cast

import pytest

from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry.rpc.lanes import Lane
from kvferry.rpc.options import MESSAGE_BYTES_MAX
from kvferry.rpc.streams import Outgoing, carry_by

FIRST = b"token"


class Wire:
    """What a lane writes to instead of a socket."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        """Keep what is written."""
        self.written.append(data)

    def close(self) -> None:
        """Note it."""
        self.closed = True

    def pause_reading(self) -> None:
        """Nothing arrives but by the test's hand."""

    def resume_reading(self) -> None:
        """As above."""


def frame(message: bytes) -> bytes:
    """A message as it travels."""
    return len(message).to_bytes(4, "little") + message


def placed(wire: Wire) -> Lane:
    """A lane whose first frame has come."""
    firsts: list[bytes] = []
    lane = Lane(lambda _, first: firsts.append(first))
    lane.connection_made(cast("asyncio.Transport", wire))
    lane.data_received(frame(FIRST))
    assert [FIRST] == firsts
    return lane


@pytest.mark.parametrize("size", [1, 3, 5, 1_000])
def test_frames_are_whole_however_they_arrive(size: int) -> None:
    """Messages come out in order and whole, whether they arrive in pieces or several at once; also empty ones."""
    taken: list[bytes] = []
    lane = placed(Wire())
    lane.begin(taken.append, lambda: None)
    messages = [b"", b"a", b"b" * 300, b"", b"c" * 5]
    stream = b"".join(map(frame, messages))
    for start in range(0, len(stream), size):
        lane.data_received(stream[start : start + size])
    assert messages == taken


def test_what_comes_before_the_beginning_is_kept() -> None:
    """Nothing is lost that arrives between the first frame and the beginning."""
    taken: list[bytes] = []
    lane = placed(Wire())
    lane.data_received(frame(b"early") + frame(b"cut")[:5])
    assert [] == taken
    lane.begin(taken.append, lambda: None)
    assert [b"early"] == taken
    lane.data_received(b"ut")
    assert [b"early", b"cut"] == taken


def test_a_frame_that_is_too_long_ends_the_lane() -> None:
    """A length beyond the bound of a message ends the connection before any of the message is kept."""
    wire = Wire()
    lane = placed(wire)
    lane.begin(lambda _: None, lambda: None)
    lane.data_received((MESSAGE_BYTES_MAX + 1).to_bytes(4, "little"))
    assert wire.closed


async def test_what_waits_goes_out_when_the_other_side_keeps_up() -> None:
    """The first item goes at once, the others of the same turn together; none while the other side is behind."""
    wire = Wire()
    lane = placed(wire)
    outgoing: Outgoing[pb.SessionCall] = Outgoing(10)
    carry_by(lane, outgoing, lambda _: None, lambda: None)
    for number in (1, 2, 300):
        outgoing.put(pb.SessionCall(call_id=number))
    assert [[1]] == numbers(wire)
    await asyncio.sleep(0)
    assert [[1], [2, 300]] == numbers(wire)
    lane.pause_writing()
    outgoing.put(pb.SessionCall(call_id=4, negotiate=pb.NegotiateRequest(handle=b"h" * 200)))
    await asyncio.sleep(0)
    assert [[1], [2, 300]] == numbers(wire)
    lane.resume_writing()
    assert [[1], [2, 300], [4]] == numbers(wire)
    lane.connection_lost(None)
    outgoing.put(pb.SessionCall(call_id=5))
    assert [[1], [2, 300], [4]] == numbers(wire)


def numbers(wire: Wire) -> list[list[int]]:
    """The calls of each message that was written."""
    return [[call.call_id for call in pb.SessionRequest.FromString(sent[4:]).calls] for sent in wire.written]
