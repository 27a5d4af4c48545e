"""Block lists of requests are checked before anything is done with them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import BlockError, InvalidArgument, KvferryError, MessageTooLarge
from kvferry.core.layouts import ElementType
from kvferry.core.reasons import Reason
from kvferry.layout.v1.layout_pb2 import BlockList
from kvferry.rpc.block_lists import block_list
from kvferry_control.blocks import Shards, check_blocks, check_tokens, shard_of

LAYOUT = dense_layout(
    DenseModel(model="m", layer_count=1, kv_heads=1, head_dim=8, tokens_per_block=16, element_type=ElementType.FLOAT16),
    block_count=10,
)
SHARD = shard_of(LAYOUT, 0)


TORN = {"full": BlockList(group="full", packed_ids=bytes(7))}
BOTH = {"full": BlockList(group="full", block_ids=[1], packed_ids=bytes(4))}


def lists(**ids: Sequence[int]) -> dict[str, BlockList]:
    """Block lists by group."""
    return {group: BlockList(group=group, block_ids=listed) for group, listed in ids.items()}


def packed(*ids: int) -> dict[str, BlockList]:
    """A block list in its other form."""
    return {"full": block_list("full", np.array(ids))}


@pytest.mark.parametrize(
    ("blocks", "kind", "reason", "field"),
    [
        (packed(0, 10), BlockError, Reason.BLOCK_OUT_OF_RANGE, "blocks[full].block_ids[1]"),
        (packed(3, 4, 3), BlockError, Reason.BLOCK_DUPLICATE, "blocks[full].block_ids[2]"),
        (packed(*range(10), *range(11)), MessageTooLarge, Reason.MESSAGE_TOO_LARGE, "blocks"),
        (TORN, InvalidArgument, Reason.INVALID_ARGUMENT, "blocks[full].packed_ids"),
        (BOTH, InvalidArgument, Reason.INVALID_ARGUMENT, "blocks[full].packed_ids"),
        (lists(), InvalidArgument, Reason.INVALID_ARGUMENT, "blocks"),
        (lists(full=[]), InvalidArgument, Reason.INVALID_ARGUMENT, "blocks"),
        (lists(other=[1]), InvalidArgument, Reason.INVALID_ARGUMENT, "blocks.group"),
        (lists(full=[0, 10]), BlockError, Reason.BLOCK_OUT_OF_RANGE, "blocks[full].block_ids[1]"),
        (lists(full=[3, 4, 3]), BlockError, Reason.BLOCK_DUPLICATE, "blocks[full].block_ids[2]"),
        (lists(full=list(range(10)) * 3), MessageTooLarge, Reason.MESSAGE_TOO_LARGE, "blocks"),
    ],
)
def test_wrong_lists_are_refused(
    blocks: dict[str, BlockList], kind: type[KvferryError], reason: Reason, field: str
) -> None:
    """Each mistake has its reason, and the error names where it is."""
    with pytest.raises(kind) as caught:
        check_blocks("blocks", blocks, SHARD, count_max=20)
    assert (reason, field) == (caught.value.reason, caught.value.metadata["field"])


def test_every_block_of_the_pool_may_be_named() -> None:
    """The first and the last block are in range."""
    check_blocks("blocks", lists(full=list(range(10))), SHARD, count_max=20)
    check_blocks("blocks", packed(*range(10)), SHARD, count_max=20)


def test_lists_must_hold_the_tokens() -> None:
    """Fewer or more blocks than the tokens take are refused with both numbers; a last block may be partial."""
    for token_count in (17, 32):
        check_tokens("blocks", lists(full=[1, 2]), LAYOUT, token_count)
        check_tokens("blocks", packed(1, 2), LAYOUT, token_count)
    for blocks in (lists(full=[5]), lists(full=[5, 6, 7]), lists()):
        with pytest.raises(BlockError) as caught:
            check_tokens("blocks", blocks, LAYOUT, 32)
        assert Reason.BLOCK_COUNT_MISMATCH is caught.value.reason
        assert "2 blocks of 16" in caught.value.message


def test_a_prefix_that_is_there_needs_no_blocks() -> None:
    """Blocks whose tokens are all there already may be left out; a prefix longer than the request is refused."""
    check_tokens("blocks", lists(full=[2]), LAYOUT, token_count=32, first_token=16)
    check_tokens("blocks", lists(full=[1, 2]), LAYOUT, token_count=32, first_token=16)
    with pytest.raises(InvalidArgument) as caught:
        check_tokens("blocks", lists(full=[1, 2]), LAYOUT, token_count=32, first_token=33)
    assert "first_token" == caught.value.metadata["field"]


def test_a_shard_is_worked_out_once_for_each_layout() -> None:
    """Another layout, be it equal, begins anew; a data-parallel rank that is not there is refused each time."""
    shards, other = Shards(), replace(LAYOUT)
    first = shards.of(LAYOUT, 0)
    assert (frozenset({0}), {"full": 10}) == (first.ranks, first.block_counts)
    assert first is shards.of(LAYOUT, 0)
    assert first is not shards.of(other, 0)
    for _ in range(2):
        with pytest.raises(InvalidArgument) as caught:
            shards.of(LAYOUT, 1)
        assert "data_parallel_rank" == caught.value.metadata["field"]
