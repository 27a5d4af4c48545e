"""Reads between data planes that hold KV differently."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf.duration_pb2 import Duration

from kvferry.core.dense import HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout, shape_of
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.error.v1 import error_pb2
from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import DataPlane, Session, blocks, seconds

MODEL = DenseModel("model", 4, 2, 8, 16, ElementType.BFLOAT16)
TOKENS = 150

Kv = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Case:
    """Two ways to hold one model."""

    source: WorkerLayout
    destination: WorkerLayout


def kv_of(plane: DataPlane, ids: list[int]) -> Kv:
    """A rank's blocks as ``[layer, kv, head, token, dim]``, a copy read straight from the mapping."""
    group, placement = plane.layout.groups[0], plane.layout.ranks[plane.rank].placements[0]
    elements = plane.pool()[placement.base_bytes :].view(np.uint16)
    held = np.lib.stride_tricks.as_strided(elements, shape_of(group, placement), placement.strides)
    chosen = np.moveaxis(held[ids], 0, 3)
    return chosen.reshape(*chosen.shape[:3], -1, group.head_dim)


async def publish(source: DataPlane, there: Session, ids: list[int]) -> tuple[pb.ConnectPeer, pb.ReadSource]:
    """Lease blocks of a source rank."""
    lease = await there.acquire("p1", ids)
    peer = await source.as_peer()
    await there.ask(expect_readers={"duration": Duration(seconds=20)})
    return peer, pb.ReadSource(peer=peer.peer, blocks=blocks(ids), lease=lease)


CASES = {
    "two ranks into one": Case(
        dense_layout(MODEL, 20, 2, HND), dense_layout(replace(MODEL, tokens_per_block=64), 6, 1, NHD)
    ),
    "two stages into one": Case(
        dense_layout(replace(MODEL, tokens_per_block=128), 6, 1, NHD, pipeline=(3, 1)), dense_layout(MODEL, 20, 1, HND)
    ),
    "replicas of one head": Case(
        dense_layout(replace(MODEL, kv_heads=1, kv_factor=1), 20, 2),
        dense_layout(replace(MODEL, kv_heads=1, kv_factor=1), 20),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.long
async def test_a_read_gathers_its_part_from_several_ranks(start: Start, name: str, path_flags: tuple[str, str]) -> None:
    """A rank reads its layers and heads from whichever ranks hold them, in blocks of its own size and order."""
    case = CASES[name]
    sources = [await start(f"source-{rank}", case.source, rank=rank) for rank in range(2)]
    destination = await start("destination", case.destination, None, *path_flags)
    ids = [11, 3, 4, 5, 17, 0, 9, 8, 2, 19] if case.source.block_count("full") == 20 else [4, 1]
    wanted = list(range(9, -1, -1)) if case.destination.block_count("full") == 20 else [5, 0, 3]
    here = await destination.session()
    read = pb.Read(
        transfer="t1", destination_blocks=blocks(wanted), time_left=seconds(15.0), token_count=TOKENS, first_token=20
    )
    for source in sources:
        peer, listed = await publish(source, await source.session(), ids)
        await here.send(connect_peer=peer)
        read.sources.append(listed)
    before = kv_of(destination, wanted)
    await here.send(read=read)
    finished = await here.finished("t1")
    assert not finished.HasField("failure"), finished
    expected = before.copy()
    for source in sources if name != "replicas of one head" else sources[-1:]:
        held = case.source.ranks[source.rank].placements[0]
        rows = np.ix_(held.layers, range(case.source.groups[0].kv_factor), held.heads, range(20, TOKENS))
        expected[rows] = kv_of(source, ids)[:, :, :, 20:TOKENS]
    actual = kv_of(destination, wanted)
    if name == "replicas of one head" and not np.array_equal(expected, actual):
        expected[:, :, :, 20:TOKENS] = kv_of(sources[0], ids)[:, :, :, 20:TOKENS]
    assert np.array_equal(expected, actual)
    assert expected[:, :, :, 20:TOKENS].nbytes == finished.figures.received_bytes


async def test_a_source_rank_that_is_needed_must_be_listed(start: Start) -> None:
    """A read that lists too few source ranks is refused and says which is missing."""
    layout = dense_layout(MODEL, 20, 2, HND)
    source, destination = await start("source", layout), await start("destination", dense_layout(MODEL, 20))
    here = await destination.session()
    peer, listed = await publish(source, await source.session(), [1])
    await here.send(connect_peer=peer)
    read = pb.Read(transfer="t1", sources=[listed], destination_blocks=blocks([1]), time_left=seconds(15.0))
    answer = await here.ask(read=read)
    assert error_pb2.REASON_INVALID_ARGUMENT == answer.command_refused.reason
    assert "source rank 1 is needed" in answer.command_refused.message


async def test_a_read_of_nothing_still_verifies_the_lease(start: Start) -> None:
    """Where the destination has every token already, no byte moves, and an ended lease still fences."""
    source, destination = await start("source"), await start("destination")
    there, here = await source.session(), await destination.session()
    peer, listed = await publish(source, there, [1])
    await here.send(connect_peer=peer)
    read = pb.Read(
        transfer="t1",
        sources=[listed],
        destination_blocks=blocks([1]),
        time_left=seconds(15.0),
        token_count=16,
        first_token=16,
    )
    await here.send(read=read)
    finished = await here.finished("t1")
    assert (False, 0) == (finished.HasField("failure"), finished.figures.received_bytes)
    await there.ask(release_lease={"publication": "p1"})
    read.transfer = "t2"
    await here.send(read=read)
    assert error_pb2.REASON_FENCED == (await here.finished("t2")).failure.reason
