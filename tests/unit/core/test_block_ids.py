"""Ids that are many: repeated ones are found and their order is made without sorting."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kvferry.core.blocks import ascending, check_ids
from kvferry.core.errors import BlockError

MANY = 600
"""More than are checked one by one."""


@given(st.sampled_from((MANY, 10 * MANY, 1_000 * MANY)), st.integers(0, 2**32))
def test_unique_ids_pass_and_are_ordered(block_count: int, seed: int) -> None:
    """Distinct ids are taken, and their order is that of sorting, however sparse they are."""
    ids = np.random.default_rng(seed).permutation(block_count)[:MANY].astype(np.int64)
    check_ids("full", ids, block_count, "blocks")
    assert np.array_equal(np.argsort(ids), ascending(ids))


@pytest.mark.parametrize("block_count", [MANY, 1_000 * MANY])
def test_a_repeated_id_is_named(block_count: int) -> None:
    """An id that comes twice is refused with its second position."""
    ids = np.arange(MANY, dtype=np.int64)
    ids[MANY - 1] = 7
    with pytest.raises(BlockError) as caught:
        check_ids("full", ids, block_count, "blocks")
    assert "blocks[full].block_ids[599]" == caught.value.metadata["field"]
