"""Requests that touch only a part of the ranks, or of the tokens."""

import pytest
import torch

from kvferry import InvalidArgument, dense_layout
from kvferry.core.dense import HND, NHD
from tests.process.cluster.pair import MODEL, RANKS, running_pair

BLOCKS = 64
TOKENS = MODEL.tokens_per_block


@pytest.mark.long
async def test_data_parallel_ranks_hold_requests_of_their_own() -> None:
    """A request published by one data-parallel rank is pulled into another, and no other rank is touched."""
    layouts = [dense_layout(MODEL, BLOCKS, tensor_parallel=1, data_parallel=RANKS, order=order) for order in (NHD, HND)]
    async with running_pair(*layouts) as pair:
        source = [(await pair.source.attach(rank)).kv() for rank in range(RANKS)]
        destination = [(await pair.destination.attach(rank)).kv() for rank in range(RANKS)]
        for pool in source:
            pool.copy_(torch.rand(pool.shape))
        for pool in destination:
            pool.fill_(-1.0)
        publication = await pair.source.publish([3, 4], 2 * TOKENS, 30.0, data_parallel_rank=1)
        result = await pair.destination.pull(publication.handle, [9, 8], timeout_s=10, data_parallel_rank=0)
        assert [0] == [figures.rank for figures in result.ranks]
        assert torch.equal(source[1][:, [3, 4]], destination[0][:, [9, 8]])
        untouched = torch.ones(BLOCKS, dtype=torch.bool)
        untouched[[8, 9]] = False
        assert bool((destination[0][:, untouched] == -1.0).all())
        assert bool((destination[1] == -1.0).all())
        with pytest.raises(InvalidArgument) as caught:
            await pair.source.publish([3], TOKENS, 30.0, data_parallel_rank=RANKS)
        assert "data_parallel_rank" == caught.value.metadata["field"]


@pytest.mark.long
async def test_a_prefix_that_is_there_is_not_read() -> None:
    """With ``first_token`` only later tokens are written, in the middle of a block too, and only they are counted."""
    async with running_pair(dense_layout(MODEL, BLOCKS, RANKS, NHD), dense_layout(MODEL, BLOCKS, RANKS, HND)) as pair:
        source = [(await pair.source.attach(rank)).kv() for rank in range(RANKS)]
        destination = [(await pair.destination.attach(rank)).kv() for rank in range(RANKS)]
        for ours, theirs in zip(source, destination, strict=True):
            ours.copy_(torch.rand(ours.shape))
            theirs.fill_(-1.0)
        token_count, first_token = 3 * TOKENS - 5, TOKENS + 3
        publication = await pair.source.publish([1, 2, 3], token_count, 30.0)
        result = await pair.destination.pull(publication.handle, [7, 6, 5], timeout_s=10, first_token=first_token)
        token_bytes = MODEL.layer_count * 2 * MODEL.kv_heads * MODEL.head_dim * 4
        assert (token_count - first_token) * token_bytes == result.received_bytes
        for ours, theirs in zip(source, destination, strict=True):
            # [layer, block, kv, token, head, dim] to [layer, kv, token, head, dim] over the request's tokens.
            read, written = (
                pool[:, blocks].transpose(1, 2).flatten(2, 3)
                for pool, blocks in ((ours, [1, 2, 3]), (theirs, [7, 6, 5]))
            )
            assert torch.equal(read[:, :, first_token:token_count], written[:, :, first_token:token_count])
            assert bool((written[:, :, :first_token] == -1.0).all())
            assert bool((written[:, :, token_count:] == -1.0).all())
