"""Checksums end to end: what was published is what arrived, or the pull says where it is not."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from kvferry import ChecksumMismatch, ChecksumsAbsent, InvalidArgument, dense_layout, destination_settled
from kvferry.core.dense import HND, NHD, DenseModel
from kvferry.launch.metrics import read_metric
from tests.process.cluster.pair import MODEL, RANKS, Pair, layout_of, running_pair

BLOCKS = 64
TOKENS = MODEL.tokens_per_block
TOKEN_BYTES = MODEL.layer_count * 2 * MODEL.kv_heads * MODEL.head_dim * 4

pytestmark = pytest.mark.asyncio(loop_scope="module")


def model(**changes: Any) -> DenseModel:
    """The model of the pair, changed."""
    return DenseModel(**{name: getattr(MODEL, name) for name in MODEL.__dataclass_fields__} | changes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def summing() -> AsyncIterator[Pair]:
    """One rank to two, NHD to HND, and blocks of 16 tokens to blocks of 8; the source sums what it publishes."""
    source = dense_layout(MODEL, BLOCKS, tensor_parallel=1, data_parallel=RANKS, order=NHD)
    destination = dense_layout(model(tokens_per_block=8), 2 * BLOCKS, RANKS, order=HND)
    async with running_pair(source, destination, data_plane_flags=("--checksums", "full")) as pair:
        pool = (await pair.source.attach(0)).kv()
        pool.copy_(torch.rand(pool.shape))
        yield pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sampling() -> AsyncIterator[Pair]:
    """Pipeline stages to tensor parallelism, over NIXL; the source sums one block in two."""
    source = dense_layout(MODEL, BLOCKS, tensor_parallel=1, pipeline=(3, 1))
    flags = ("--checksums", "sampled:2", "--path", "nixl")
    async with running_pair(source, layout_of(BLOCKS), data_plane_flags=flags) as pair:
        yield pair


@pytest.mark.parametrize(("token_count", "first_token"), [(48, 0), (43, 0), (43, 8), (43, 19), (33, 32)])
async def test_other_layouts_have_the_same_sums(summing: Pair, token_count: int, first_token: int) -> None:
    """Other ranks, axes and block sizes, a partial last block and a prefix that ends inside one: all bytes compare."""
    publication = await summing.source.publish([3, 9, 4], token_count, 30.0)
    wanted = list(range(40, 40 + -(-token_count // 8)))
    result = await summing.destination.pull(publication.handle, wanted, 10.0, first_token=first_token, verify="full")
    assert (token_count - first_token) * TOKEN_BYTES == result.received_bytes
    assert result.received_bytes == result.compared_bytes
    assert result.checksum_s > 0
    assert [result.received_bytes // RANKS] * RANKS == [rank.compared_bytes for rank in result.ranks]


async def test_a_byte_that_changed_after_it_was_published_is_found_and_named(summing: Pair) -> None:
    """A changed byte fails the pull with its group, cell, tokens and ranks; what is not compared passes."""
    publication = await summing.source.publish([3, 9, 4], 48, 30.0, expected_readers=0)
    pool = (await summing.source.attach(0)).kv()
    kept = pool[2, 9, 1, 5, 3, 7].clone()
    # [layer, block, kv, token, head, dim]: token 21 of the request.
    pool[2, 9, 1, 5, 3, 7] = kept + 1
    try:
        with pytest.raises(ChecksumMismatch) as caught:
            await summing.destination.pull(publication.handle, [1, 2, 3, 4, 5, 6], 10.0, verify="full")
        unseen = await summing.destination.pull(publication.handle, [1, 2, 3, 4, 5, 6], 10.0)
        past = await summing.destination.pull(publication.handle, [5, 6], 10.0, first_token=32, verify="full")
    finally:
        pool[2, 9, 1, 5, 3, 7] = kept
        await summing.source.release(publication)
    assert "group 'full', layer 2, V, head 3, tokens 16 to 32, from source rank 0" in caught.value.message
    assert "(1 of " in caught.value.message
    assert "1" == caught.value.metadata["rank"]
    assert destination_settled(caught.value)
    assert unseen.succeeded
    assert 0 == unseen.compared_bytes
    assert past.received_bytes == past.compared_bytes
    address = summing.decode.data_plane_metrics_address(1)
    assert 1 == await read_metric(address, "kvferry_dataplane_reads_total", reason="CHECKSUM_MISMATCH")


async def test_blocks_that_were_swapped_after_they_were_published_are_found(summing: Pair) -> None:
    """Two blocks with each other's content fail the pull."""
    publication = await summing.source.publish([3, 9, 4], 48, 30.0)
    pool = (await summing.source.attach(0)).kv()
    pool[:, [3, 9]] = pool[:, [9, 3]].clone()
    with pytest.raises(ChecksumMismatch):
        await summing.destination.pull(publication.handle, [1, 2, 3, 4, 5, 6], 10.0, verify="full")


async def test_a_wrong_share_is_refused_by_the_client(summing: Pair) -> None:
    """``verify`` is off, full or sampled:N."""
    publication = await summing.source.publish([3], 16, 30.0)
    with pytest.raises(InvalidArgument, match="verify"):
        await summing.destination.pull(publication.handle, [1, 2], 10.0, verify="some")


@pytest.mark.long
async def test_a_sample_compares_the_stated_share(sampling: Pair) -> None:
    """One block in four of a source that sums one in two: a quarter of the bytes is compared, on every rank."""
    listed = list(range(32))
    publication = await sampling.source.publish(listed, 32 * TOKENS, 30.0)
    result = await sampling.destination.pull(publication.handle, listed, 10.0, verify="sampled:4")
    assert 32 * TOKENS * TOKEN_BYTES == result.received_bytes
    assert result.received_bytes == 4 * result.compared_bytes
    assert "nixl" == result.path


async def test_more_than_the_source_sums_is_refused(sampling: Pair) -> None:
    """To compare everything with a source that sums one block in two is refused before a byte is read."""
    publication = await sampling.source.publish([1, 2], 2 * TOKENS, 30.0)
    with pytest.raises(ChecksumsAbsent, match="one block in 2"):
        await sampling.destination.pull(publication.handle, [1, 2], 10.0, verify="full")


async def test_changes_in_all_blocks_are_found_by_a_sample(sampling: Pair) -> None:
    """Where every block has changed, any sample finds it."""
    publication = await sampling.source.publish([1, 2, 3], 3 * TOKENS, 30.0)
    for rank in range(RANKS):
        pool = (await sampling.source.attach(rank)).numpy()
        pool[:] = np.random.default_rng(rank).integers(0, 256, pool.size, dtype=np.uint8)
    with pytest.raises(ChecksumMismatch):
        await sampling.destination.pull(publication.handle, [1, 2, 3], 10.0, verify="sampled:2")
    again = await sampling.source.publish([1, 2, 3], 3 * TOKENS, 30.0)
    assert (await sampling.destination.pull(again.handle, [1, 2, 3], 10.0, verify="sampled:2")).succeeded
