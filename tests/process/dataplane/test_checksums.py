"""What a data plane sums, answers and compares, asked as a control asks."""

import pytest

from kvferry.core.dense import HND, DenseModel, dense_layout
from kvferry.core.layouts import ElementType
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.error.v1 import error_pb2
from kvferry.negotiation.v1.negotiation_pb2 import ChecksumScope, RankChecksums, RankLease
from tests.process.dataplane.conftest import Start
from tests.process.dataplane.harness import DataPlane, Session, read_command, seconds

SOURCE, DESTINATION = [5, 9, 2, 7], [20, 10, 11, 40]
LATENT = dense_layout(DenseModel("model", 3, 1, 72, 16, ElementType.BFLOAT16, kv_factor=1), 64, 2, HND)
"""A latent cache that both ranks hold."""


async def summed(session: Session, every: int = 1, publication: str = "p") -> pb.SessionResponse:
    """The answer about a lease's sums."""
    scope = ChecksumScope(every=every, seed=3)
    return await session.ask(sum_checksums=pb.SumChecksums(publication=publication, scope=scope))


async def lease(source: DataPlane) -> tuple[Session, RankLease, RankChecksums]:
    """A lease on the blocks, and their sums."""
    session = await source.session()
    await session.ask(expect_readers=pb.ExpectReaders(duration=seconds(60.0)))
    granted = await session.acquire("p", SOURCE)
    answer = await summed(session)
    assert "checksums_summed" == answer.WhichOneof("event"), answer
    return session, granted, answer.checksums_summed.checksums


def comparing(peer: pb.ConnectPeer, granted: RankLease, sums: RankChecksums | None, transfer: str = "t") -> pb.Read:
    """A read that compares everything."""
    command = read_command(transfer, peer, granted, SOURCE, DESTINATION)
    command.compare_every = 1
    if sums is not None:
        command.sources[0].checksums.CopyFrom(sums)
    return command


async def test_a_read_compares_before_it_succeeds(start: Start, path_flags: tuple[str, str]) -> None:
    """On each path, unchanged blocks compare in full, and blocks that changed after the lease began do not."""
    source = await start("source", None, None, "--checksums", "full", *path_flags)
    destination = await start("destination", None, None, *path_flags)
    _, granted, sums = await lease(source)
    peer = await source.as_peer()
    session = await destination.session()
    await session.ask(connect_peer=peer)
    await session.send(read=comparing(peer, granted, sums))
    finished = await session.finished("t")
    assert not finished.HasField("failure"), finished
    assert finished.figures.received_bytes == finished.figures.compared_bytes > 0
    assert source.block_bytes(SOURCE) == destination.block_bytes(DESTINATION)
    at = source.layout.ranks[0].placements[0].strides.block * 2 + 77
    source.pool()[at] ^= 1
    await session.send(read=comparing(peer, granted, sums, "u"))
    failed = await session.finished("u")
    assert error_pb2.REASON_CHECKSUM_MISMATCH == failed.failure.reason
    assert "head 0, tokens 32 to 48" in failed.failure.message
    # Its blocks are free again.
    await session.send(read=read_command("v", peer, granted, SOURCE, DESTINATION))
    assert not (await session.finished("v")).HasField("failure")


@pytest.mark.long
async def test_a_replicated_latent_cache_compares(start: Start) -> None:
    """K and V as one, held by two ranks: what comes from either compares with that rank's sums."""
    source = await start("source", LATENT, None, "--checksums", "full", rank=1)
    destination = await start("destination", LATENT, rank=1)
    _, granted, sums = await lease(source)
    peer = await source.as_peer()
    session = await destination.session()
    await session.ask(connect_peer=peer)
    await session.send(read=comparing(peer, granted, sums))
    finished = await session.finished("t")
    assert not finished.HasField("failure"), finished
    assert 4 * 16 * 3 * 144 == finished.figures.compared_bytes


@pytest.mark.long
async def test_reads_without_what_they_compare_with_are_refused(start: Start) -> None:
    """Sums that are missing, damaged or of a part are refused, and the blocks stay free."""
    source = await start("source", None, None, "--checksums", "full")
    destination = await start("destination")
    _, granted, sums = await lease(source)
    peer = await source.as_peer()
    session = await destination.session()
    await session.ask(connect_peer=peer)
    short, part, beyond = RankChecksums(), RankChecksums(), RankChecksums()
    for changed in (short, part, beyond):
        changed.CopyFrom(sums)
    short.groups[0].sums = sums.groups[0].sums[:-8]
    part.groups[0].counts[-1] -= 1
    beyond.groups[0].counts[-1] += 1
    for given, reason in (
        (None, error_pb2.REASON_INVALID_ARGUMENT),
        (short, error_pb2.REASON_INVALID_ARGUMENT),
        (beyond, error_pb2.REASON_INVALID_ARGUMENT),
        (part, error_pb2.REASON_CHECKSUMS_ABSENT),
    ):
        refused = await session.ask(read=comparing(peer, granted, given))
        assert reason == refused.command_refused.reason, refused
    await session.send(read=comparing(peer, granted, sums))
    assert not (await session.finished("t")).HasField("failure")


async def test_answers_end_with_their_lease(start: Start) -> None:
    """Sums are given while the lease holds, not after; a share of nothing is refused."""
    source = await start("source", None, None, "--checksums", "full")
    session, _, sums = await lease(source)
    assert 4 * 2 * 2 * 2 * 8 == len(sums.groups[0].sums)
    refused = await summed(session, every=0)
    assert error_pb2.REASON_INVALID_ARGUMENT == refused.command_refused.reason
    await session.ask(release_lease=pb.ReleaseLease(publication="p"))
    ended = await summed(session)
    assert error_pb2.REASON_LEASE_ENDED == ended.command_refused.reason
