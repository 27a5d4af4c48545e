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
from kvferry_dataplane.reads.request import ReadOutcome, ReadRequest, SourceShare
from tests.unit.dataplane.test_desk import CELL, MODEL, known, read, source

LOST = PeerError("gone", reason=Reason.PEER_LOST)
BLOCK = 2 * CELL
"""Bytes of a block of four tokens, both heads."""


class Reads:
    """A desk and what is done with its reads."""

    def __init__(self, span_bytes: int, **fields: int) -> None:
        self.peers: PeerBook = known()
        self.desk = ReadDesk(4, 1 << 20)
        side = Side(dense_layout(MODEL, 8), 0, 1 << 20)
        self.desk.reset(side, "w")
        command = read([source("r0", 0, 5, 6, 7, 4), source("r1", 1)], 2, 1, 0, 3, span_bytes=span_bytes, **fields)
        self.request: ReadRequest | None = self.desk.accept(7, command, self.peers, side, BlockCounters({"full": 8}))
        self.sizes: list[int] = []

    def step(self, failure: PeerError | None = None) -> EndedRead | None:
        """End the read under way; how it all ended, or None if another span follows."""
        request = self.request
        assert request is not None
        self.sizes.append(request.total_bytes)
        share = SourceShare(0, Route(Path.NIXL, "UCX", ""), request.total_bytes, 1, 0.0)
        outcome = ReadOutcome("t", failure, request.total_bytes, 1, 0.0, 1.0, 0.0, (share,))
        self.request = self.desk.next_span(outcome, self.peers)
        return None if self.request is not None else self.desk.settle(outcome)


def finish(reads: Reads) -> EndedRead:
    """Let all spans succeed."""
    while (ended := reads.step()) is None:
        pass
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
    """The tokens of the spans that ended well count; those of the span that failed do not, though its bytes do."""
    reads = Reads(BLOCK, token_count=15)
    assert reads.step() is None
    ended = reads.step(LOST)
    assert ended is not None
    assert (LOST, 4, 2 * BLOCK) == (ended.outcome.failure, ended.verified_tokens, ended.outcome.received_bytes)
    assert 0 == len(reads.desk)


def test_a_failure_without_spans_verifies_the_given_prefix_only() -> None:
    """What was at the destination before is all that is known to be there."""
    ended = Reads(0, token_count=15, first_token=6).step(LOST)
    assert ended is not None
    assert 6 == ended.verified_tokens


def test_a_cancellation_between_spans_is_not_lost() -> None:
    """A cancellation that comes while no span is being read ends the read before the next."""
    reads = Reads(BLOCK, token_count=15)
    assert reads.step() is None
    reads.desk.cancel("t")
    ended = reads.step()
    assert ended is not None
    assert ended.outcome.failure is not None
    assert (Reason.CANCELLED, 8) == (ended.outcome.failure.reason, ended.verified_tokens)


def test_a_cancellation_during_the_last_span_comes_too_late() -> None:
    """All tokens are there and verified: that is a success."""
    reads = Reads(2 * BLOCK, token_count=15)
    assert reads.step() is None
    reads.desk.cancel("t")
    ended = reads.step()
    assert ended is not None
    assert (None, 15) == (ended.outcome.failure, ended.verified_tokens)


def test_a_peer_that_is_gone_is_not_asked_again() -> None:
    """A source that control disconnected between two spans is lost."""
    reads = Reads(BLOCK, token_count=15)
    assert reads.step() is None
    reads.peers.remove("r1")
    ended = reads.step()
    assert ended is not None
    assert ended.outcome.failure is not None
    assert Reason.PEER_LOST is ended.outcome.failure.reason
