"""Reads in spans: what is verified is a prefix of the tokens, and an end comes between two spans as well."""

import pytest

from kvferry.core.dense import dense_layout
from kvferry.core.errors import PeerError
from kvferry.core.reasons import Reason
from kvferry_dataplane.blocks import BlockCounters
from kvferry_dataplane.desk import EndedRead, ReadDesk
from kvferry_dataplane.paths import Path, Route
from kvferry_dataplane.peers import PeerBook
from kvferry_dataplane.plan import Side
from kvferry_dataplane.reads.request import ReadOutcome, SourceShare
from kvferry_dataplane.spans import SPANS_AT_ONCE
from tests.unit.dataplane.test_desk import CELL, MODEL, known, read, source

LOST = PeerError("gone", reason=Reason.PEER_LOST)
CANCELLED = PeerError("cancelled", reason=Reason.CANCELLED)
BLOCK = 2 * CELL
"""Bytes of a block of four tokens, both heads."""


class Reads:
    """A desk and what the executor has of its one read."""

    def __init__(self, span_bytes: int, **fields: int) -> None:
        self.peers: PeerBook = known()
        self.desk = ReadDesk(4, 1 << 20)
        side = Side(dense_layout(MODEL, 8), 0, 1 << 20)
        self.desk.reset(side, "w")
        command = read([source("r0", 0, 5, 6, 7, 4), source("r1", 1)], 2, 1, 0, 3, span_bytes=span_bytes, **fields)
        self.waiting = list(self.desk.accept(7, command, self.peers, side, BlockCounters({"full": 8})))
        self.cancelled: list[str] = []
        self.sizes: list[int] = []

    def step(self, failure: PeerError | None = None, number: int = 0) -> EndedRead | None:
        """End one of the reads under way; how it all ended, or None if something is left."""
        request = self.waiting.pop(number)
        self.sizes.append(request.total_bytes)
        share = SourceShare(0, Route(Path.NIXL, "UCX", ""), request.total_bytes, 1, 0.0)
        outcome = ReadOutcome(request.transfer, failure, request.total_bytes, 1, 0.0, 1.0, 0.0, (share,))
        step = self.desk.step(outcome, self.peers)
        self.waiting += step.begin
        self.cancelled += step.cancel
        return step.end


def finish(reads: Reads) -> EndedRead:
    """Let all spans succeed."""
    while (ended := reads.step()) is None:
        assert 1 <= len(reads.waiting) <= SPANS_AT_ONCE
    return ended


@pytest.mark.parametrize(
    ("span_bytes", "fields", "sizes"),
    [
        (0, {"token_count": 15}, [15 * BLOCK // 4]),
        (1 << 20, {"token_count": 15}, [15 * BLOCK // 4]),
        (BLOCK, {}, [4 * BLOCK]),
        (BLOCK, {"token_count": 15}, [BLOCK, BLOCK, BLOCK, 3 * BLOCK // 4]),
        (2 * BLOCK + 1, {"token_count": 15}, [2 * BLOCK, 7 * BLOCK // 4]),
        (BLOCK // 2, {"token_count": 13, "first_token": 11}, [BLOCK // 2]),
        (BLOCK, {"token_count": 15, "first_token": 6}, [BLOCK // 2, BLOCK, 3 * BLOCK // 4]),
        (1, {"token_count": 15, "first_token": 13}, [BLOCK // 4] * 2),
    ],
)
def test_spans_end_where_blocks_end(span_bytes: int, fields: dict[str, int], sizes: list[int]) -> None:
    """Spans have about the size asked for and end with blocks where they can; a small read and one without a size
    are read at once."""
    reads = Reads(span_bytes, **fields)
    ended = finish(reads)
    assert sizes == reads.sizes
    assert (None, sum(sizes), len(sizes)) == (
        ended.outcome.failure,
        ended.outcome.received_bytes,
        ended.outcome.descriptor_count,
    )
    assert fields.get("token_count", 0) == ended.verified_tokens
    assert [sum(sizes)] == [share.received_bytes for share in ended.outcome.shares]


def test_a_failure_leaves_what_was_verified_before() -> None:
    """The tokens of the spans that ended well count; those of the span that failed do not, though its bytes do. The end
    is told once nothing is under way."""
    reads = Reads(BLOCK, token_count=15)
    assert reads.step() is None
    assert reads.step(LOST) is None
    assert ["t#2"] == reads.cancelled == [request.transfer for request in reads.waiting]
    ended = reads.step(CANCELLED)
    assert ended is not None
    assert (LOST, 4, 3 * BLOCK) == (ended.outcome.failure, ended.verified_tokens, ended.outcome.received_bytes)
    assert 0 == len(reads.desk)


def test_what_comes_after_a_gap_does_not_count() -> None:
    """A span that ended well behind one that failed is read again: what is verified is a prefix."""
    reads = Reads(BLOCK, token_count=15)
    assert reads.step(number=1) is None
    ended = None
    while ended is None:
        ended = reads.step(LOST)
    assert (LOST, 0) == (ended.outcome.failure, ended.verified_tokens)


def test_spans_that_end_out_of_order_make_a_success() -> None:
    """Which of two spans ends first does not matter once both have."""
    reads = Reads(BLOCK, token_count=15)
    ended = None
    while ended is None:
        ended = reads.step(number=len(reads.waiting) - 1)
    assert (None, 15) == (ended.outcome.failure, ended.verified_tokens)


def test_a_failure_without_spans_verifies_the_given_prefix_only() -> None:
    """What was at the destination before is all that is known to be there."""
    ended = Reads(0, token_count=15, first_token=6).step(LOST)
    assert ended is not None
    assert 6 == ended.verified_tokens


def test_a_cancellation_ends_what_is_under_way() -> None:
    """A cancellation that comes too late for a span ends the read before the next all the same."""
    reads = Reads(BLOCK, token_count=15)
    assert reads.step() is None
    assert ["t#1", "t#2"] == reads.desk.cancel("t")
    assert reads.step() is None
    ended = reads.step()
    assert ended is not None
    assert ended.outcome.failure is not None
    assert (Reason.CANCELLED, 12) == (ended.outcome.failure.reason, ended.verified_tokens)


def test_a_cancellation_during_the_last_span_may_come_too_late() -> None:
    """All tokens are there and verified: that is a success."""
    reads = Reads(2 * BLOCK, token_count=15)
    assert reads.step() is None
    assert ["t#1"] == reads.desk.cancel("t")
    ended = reads.step()
    assert ended is not None
    assert (None, 15) == (ended.outcome.failure, ended.verified_tokens)


def test_a_peer_that_is_gone_is_not_asked_again() -> None:
    """When control disconnected a source between two spans, no other is begun."""
    reads = Reads(BLOCK, token_count=15)
    reads.peers.remove("r1")
    assert reads.step() is None
    ended = reads.step(CANCELLED)
    assert ended is not None
    assert ended.outcome.failure is not None
    assert Reason.PEER_LOST is ended.outcome.failure.reason
    assert ["t#1"] == reads.cancelled
