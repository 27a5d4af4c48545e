"""Reads over several source ranks are accepted whole or refused by name, and nothing has changed then."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from kvferry.core.backends import Transport
from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.drain import RETRY_S_MAX
from kvferry.core.errors import KvferryError, QueueTimeout, ResourceExhausted
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.layout.v1.layout_pb2 import BlockList
from kvferry.negotiation.v1.negotiation_pb2 import RankLease
from kvferry_dataplane.blocks import BlockCounters
from kvferry_dataplane.desk import ReadDesk
from kvferry_dataplane.peers import Peer, PeerBook
from kvferry_dataplane.plan import Side
from kvferry_dataplane.reads.request import ReadOutcome, ReadRequest
from kvferry_dataplane.transports.memory import Region
from tests.unit.dataplane.fakes import WORD

MODEL = DenseModel("m", 2, 2, 8, 4, ElementType.INT8)
SOURCE = dense_layout(MODEL, 8, 2, data_parallel=2)
CELL = 4 * 2 * 2 * 8
"""Bytes of one head in one block."""


def peer(name: str, layout: WorkerLayout, rank: int) -> Peer:
    """A source rank."""
    region = Region("DRAM", 4096, 1 << 20)
    return Peer(name, name, b"m", region, region, Side(layout, rank, 1 << 20), Transport.NIXL_UCX)


def known() -> PeerBook:
    """Ranks 0 to 3 of one worker, as ``r0`` and so on, and rank 0 of another, as ``other``."""
    book = PeerBook()
    for rank in range(4):
        # Each description comes over the wire by itself.
        book.add(peer(f"r{rank}", dense_layout(MODEL, 8, 2, data_parallel=2), rank))
    book.add(peer("other", dense_layout(MODEL, 9, 2), 1))
    return book


def source(name: str, rank: int, *ids: int) -> pb.ReadSource:
    """What is read from a rank."""
    blocks = [BlockList(group="full", block_ids=ids)] if ids else []
    return pb.ReadSource(peer=name, blocks=blocks, lease=RankLease(rank=rank, slot=0, word=WORD))


def read(sources: Sequence[pb.ReadSource], *ids: int, **fields: Any) -> pb.Read:
    """A read into blocks."""
    return pb.Read(
        transfer="t",
        sources=sources,
        destination_blocks=[BlockList(group="full", block_ids=ids)],
        time_left=Duration(seconds=5),
        **fields,
    )


@pytest.fixture
def accept() -> Callable[[pb.Read], tuple[list[str], int]]:
    """Accepts a read; the peers that it reads from, and its bytes."""
    side = Side(dense_layout(MODEL, 8), 0, 1 << 20)
    desk = ReadDesk(4, 1 << 20)
    desk.reset(side, "w")
    book = known()

    def accepted(command: pb.Read) -> tuple[list[str], int]:
        pins = BlockCounters({"full": 8})
        try:
            [request] = desk.accept(1, command, book, side, pins)
        finally:
            assert len(desk) == (1 if desk.transfers() else 0)
        return [part.peer.name for part in request.parts], request.total_bytes

    return accepted


def test_each_rank_is_read_for_its_part(accept: Callable[[pb.Read], tuple[list[str], int]]) -> None:
    """All ranks that hold a part are read; the blocks need to be listed only once."""
    expected = ["r0", "r1"], 4 * CELL
    assert expected == accept(read([source("r0", 0, 5, 6), source("r1", 1)], 2, 1))


def test_the_other_data_parallel_rank_serves_as_well(accept: Callable[[pb.Read], tuple[list[str], int]]) -> None:
    """A request lives on one data-parallel rank: its ranks are read, whichever it is."""
    expected = ["r3", "r2"], 2 * CELL
    names, size = accept(read([source("r3", 3, 5), source("r2", 2, 5)], 2))
    assert (sorted(expected[0]), expected[1]) == (sorted(names), size)


def test_a_prefix_that_is_present_is_not_counted(accept: Callable[[pb.Read], tuple[list[str], int]]) -> None:
    """Only the tokens that are missing are read."""
    names, size = accept(read([source("r0", 0, 5, 6), source("r1", 1, 5, 6)], 2, 1, token_count=7, first_token=5))
    assert (["r0", "r1"], 2 * 2 * CELL // 4) == (names, size)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (read([], 1), "sources"),
        (read([source("r0", 0, 5)], 1), "sources"),
        (read([source("r0", 0, 5), source("r0", 0, 5)], 1), "sources[1].peer"),
        (read([source("r0", 0, 5), source("r3", 3, 5)], 1), "sources[1].peer"),
        (read([source("r0", 0, 5), source("other", 1, 5)], 1), "sources[1].peer"),
        (read([source("r0", 0, 5), source("r1", 1, 6)], 1), "sources[1].blocks"),
        (read([source("r0", 0, 5), source("r1", 0, 5)], 1), "sources[1].lease.rank"),
        (read([source("r0", 0), source("r1", 1, 5)], 1), "sources[0].blocks"),
        (read([source("r0", 0, 8), source("r1", 1, 8)], 1), "sources[0].blocks[full].block_ids[0]"),
        (read([source("r0", 0, 5), source("r1", 1)], 1, 2), "destination_blocks[full]"),
        (read([source("r0", 0, 5), source("r1", 1)], 1, first_token=2), "first_token"),
        (read([source("r0", 0, 5), source("r1", 1)], 1, token_count=3, first_token=4), "tokens.start"),
        (read([source("r0", 0, 5), source("r1", 1)], 1, token_count=9), "source_blocks[full]"),
    ],
)
def test_a_wrong_read_is_refused_by_name(
    accept: Callable[[pb.Read], tuple[list[str], int]], command: pb.Read, field: str
) -> None:
    """Sources of several workers, twice, too few or with other blocks, and wrong tokens, are refused."""
    with pytest.raises(KvferryError) as caught:
        accept(command)
    assert field == caught.value.metadata["field"]


def test_ranks_of_a_worker_share_one_layout() -> None:
    """However often a layout was described, it is kept once, so that what is planned for it is found again."""
    book = known()
    layouts = {id(book.get(f"r{rank}").side.layout) for rank in range(4)}
    assert 1 == len(layouts)
    book.add(peer("r0", dense_layout(MODEL, 8, 2, data_parallel=2), 0))
    assert 5 == len(book)


def desk_of(max_reads: int, max_bytes: int = 1 << 20) -> tuple[ReadDesk, Callable[..., ReadRequest]]:
    """A desk, and a function that has it accept a read of one block by worker and transfer."""
    side = Side(dense_layout(MODEL, 64), 0, 1 << 20)
    desk = ReadDesk(max_reads, max_bytes)
    desk.reset(side, "w")
    book = known()

    def accepted(worker: str, number: int, **fields: Any) -> ReadRequest:
        command = read([source("r0", 0, 5), source("r1", 1)], number, source_worker=worker, **fields)
        command.transfer = f"{worker}-{number}"
        [request] = desk.accept(number, command, book, side, BlockCounters({"full": 64}))
        return request

    return desk, accepted


def test_one_source_cannot_fill_the_desk() -> None:
    """A source that asks for everything is refused while there is room for others, and told when to come again."""
    desk, accept = desk_of(20)
    for number in range(16):
        accept("greedy", number)
    with pytest.raises(ResourceExhausted) as caught:
        accept("greedy", 16)
    assert ("max_reads", "20") == (caught.value.metadata["field"], caught.value.metadata["value"])
    assert caught.value.retry_after_s is not None
    assert 0 < caught.value.retry_after_s <= RETRY_S_MAX
    accept("modest", 17)
    for number in range(4):
        desk.step(ReadOutcome(f"greedy-{number}", None, 0, 0, 0.0, 0.0, 0.0, ()), known())
    accept("greedy", 0)


def test_a_full_desk_names_the_bound() -> None:
    """Bytes beyond the bound are refused by its name and value, and nothing has changed."""
    desk, accept = desk_of(20, 5 * CELL)
    accept("a", 1)
    accept("a", 2)
    with pytest.raises(ResourceExhausted, match="max_outstanding_bytes") as caught:
        accept("b", 3)
    assert str(5 * CELL) == caught.value.metadata["value"]
    assert 2 == len(desk)


def test_times_of_a_read_that_may_wait() -> None:
    """The deadline of a read with a queue time is after both; without, the time that is left bounds everything."""
    _, accept = desk_of(20)
    request = accept("a", 1, queue_time_left=Duration(seconds=3))
    assert request.queue_deadline is not None
    assert 3.0 == pytest.approx(request.queue_deadline - request.accepted_at)
    assert 8.0 == pytest.approx(request.deadline - request.accepted_at)
    assert 5.0 == request.service_seconds
    plain = accept("a", 2)
    assert plain.queue_deadline is None
    assert 5.0 == pytest.approx(plain.deadline - plain.accepted_at)
    with pytest.raises(QueueTimeout):
        accept("a", 3, queue_time_left=Duration())
