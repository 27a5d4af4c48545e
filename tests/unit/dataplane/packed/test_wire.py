"""The messages of the packed path."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kvferry.core.errors import InvalidArgument, MessageTooLarge
from kvferry_dataplane.packed import wire


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, 4096)), max_size=50), st.booleans())
def test_a_request_survives_the_wire(pieces: list[tuple[int, int]], uniform: bool) -> None:
    """Offsets, lengths, lease and number come back as they were."""
    offsets = np.array([offset for offset, _ in pieces], dtype=np.int64)
    lengths = np.array([512 if uniform else length for _, length in pieces], dtype=np.int64)
    message = wire.encode_request(9, 5, 77, offsets, lengths)
    header = wire.parse_request_header(message[: wire.REQUEST_HEADER_BYTES])
    body = message[wire.REQUEST_HEADER_BYTES :]
    assert (9, 5, 77, len(body)) == (header.number, header.slot, header.word, header.body_bytes)
    back = wire.parse_pieces(header, body)
    assert (offsets.tolist(), lengths.tolist()) == (back[0].tolist(), back[1].tolist())


def test_lengths_of_one_size_are_not_listed() -> None:
    """A request for equal pieces carries 8 bytes for each."""
    lengths = np.full(1000, 4096, dtype=np.int64)
    message = wire.encode_request(0, 0, 1, np.zeros(1000, dtype=np.int64), lengths)
    assert wire.REQUEST_HEADER_BYTES + 8000 == len(message)


def test_a_request_that_asks_for_too_much_is_refused_on_both_sides() -> None:
    """Neither more pieces nor more bytes than a request may have are sent or accepted."""
    many = np.ones(wire.PIECES_MAX + 1, dtype=np.int64)
    with pytest.raises(MessageTooLarge, match="piece_count"):
        wire.encode_request(0, 0, 1, many, many)
    huge = np.array([wire.REQUEST_BYTES_MAX + 1], dtype=np.int64)
    with pytest.raises(MessageTooLarge, match="total_bytes"):
        wire.encode_request(0, 0, 1, huge, huge)
    with pytest.raises(MessageTooLarge):
        wire.parse_request_header(b"\xff" * wire.REQUEST_HEADER_BYTES)


@pytest.mark.parametrize("lengths", [[-1, 11], [4, 5]])
def test_pieces_must_come_to_what_the_header_says(lengths: list[int]) -> None:
    """A listed length that is negative, or a wrong sum, is refused."""
    header = wire.RequestHeader(0, 1, 10, 0, 2, 0)
    with pytest.raises(InvalidArgument):
        wire.parse_pieces(header, np.array([0, 0, *lengths], dtype="<i8").tobytes())


def test_the_word_is_not_in_a_header_s_repr() -> None:
    """A header can be logged."""
    assert "1234567" not in repr(wire.RequestHeader(0, 1234567, 10, 0, 2, 0))


def test_an_unknown_status_is_refused() -> None:
    """A reader does not guess what a source means."""
    with pytest.raises(InvalidArgument, match="status"):
        wire.parse_answer(b"\xff" * wire.ANSWER_BYTES)
    with pytest.raises(InvalidArgument, match="magic"):
        wire.parse_welcome(b"HTTP/1.1")
