"""Which faults a sum finds, and that it does not see layouts."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kvferry.core.blocks import BlockIds
from kvferry.core.checksums.formula import Words, cell_keys
from kvferry.core.checksums.regions import TokenRanges, digest_region
from kvferry.core.dense import AXES
from kvferry.core.layouts import GroupPlacement, LayerGroup, WorkerLayout
from kvferry.device.native import digest_host
from tests.unit.checksums.reference import Bytes
from tests.unit.checksums.regions import layouts, memory_of
from tests.unit.native.memory import window

TOKENS = 10
IDS = np.array([3, 9, 1], dtype=np.int64)


def kv_of(memory: Bytes, group: LayerGroup, placement: GroupPlacement) -> Bytes:
    """The pool as ``[block, layer, kv, head, token, byte]``."""
    strides = placement.strides
    assert strides.dim == group.element_type.size_bytes
    shape = (
        placement.block_count,
        len(placement.layers),
        group.kv_factor,
        len(placement.heads),
        group.tokens_per_block,
        group.head_dim * group.element_type.size_bytes,
    )
    return np.lib.stride_tricks.as_strided(memory[placement.base_bytes :], shape, (*strides[:5], 1))


def sums(memory: Bytes, layout: WorkerLayout, rank: int = 0, ids: BlockIds = IDS) -> Words:
    """Of all tokens together, ``[cell]``."""
    ranges = TokenRanges(np.array([0]), np.array([TOKENS]), np.array([0]), 1)
    region = digest_region(layout.groups[0], layout.ranks[rank].placements[0], ids, TOKENS, ranges)
    found: Words = digest_host(window(memory), region, 1)[0]
    return found


def flip_bit(kv: Bytes) -> None:
    """One bit of the last token."""
    kv[1, 2, 1, 1, 1, 15] ^= 128


def swap_tokens(kv: Bytes) -> None:
    """Two tokens of a block."""
    kv[3, :, :, :, [0, 1]] = kv[3, :, :, :, [1, 0]]


def swap_tokens_of_blocks(kv: Bytes) -> None:
    """The first two tokens of two blocks."""
    kv[[3, 1], :, :, :, :2] = kv[[1, 3], :, :, :, :2]


def swap_heads(kv: Bytes) -> None:
    """The heads of one layer."""
    kv[:, 0, 0] = kv[:, 0, 0, ::-1].copy()


def swap_keys_and_values(kv: Bytes) -> None:
    """K and V of one layer."""
    kv[:, 1] = kv[:, 1, ::-1].copy()


def swap_layers(kv: Bytes) -> None:
    """Two layers."""
    kv[:, [0, 2]] = kv[:, [2, 0]]


def zero_a_run(kv: Bytes) -> None:
    """What a token has in one cell."""
    kv[9, 0, 0, 0, 2] = 0


def zero_a_block(kv: Bytes) -> None:
    """A block that never arrived in fresh memory."""
    kv[9] = 0


def keep_stale_bytes(kv: Bytes) -> None:
    """A block that still holds another's."""
    kv[9] = kv[5]


def shift_tokens(kv: Bytes) -> None:
    """Every token one place late."""
    kv[9, ..., 1:, :] = kv[9, ..., :-1, :].copy()


FAULTS = [
    flip_bit,
    swap_tokens,
    swap_tokens_of_blocks,
    swap_heads,
    swap_keys_and_values,
    swap_layers,
    zero_a_run,
    zero_a_block,
    keep_stale_bytes,
    shift_tokens,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_sums_change_with_every_fault(fault: Callable[[Bytes], None]) -> None:
    """Swapped, shifted, stale and zeroed tokens, blocks, heads and layers, and a single bit, change the sums."""
    layout = layouts()
    for seed in range(20):
        memory = memory_of(layout, 0, seed)
        before = sums(memory, layout)
        fault(kv_of(memory, layout.groups[0], layout.ranks[0].placements[0]))
        assert before.tolist() != sums(memory, layout).tolist()


@given(st.integers(0, 2**32), st.integers(0, 15), st.integers(0, 7), st.binary(min_size=1, max_size=16))
@settings(max_examples=200, deadline=None)
def test_any_change_of_a_run_changes_exactly_its_cell(seed: int, at: int, bit: int, other: bytes) -> None:
    """A flipped bit, or other bytes in a run, change the sum of that cell and of no other."""
    layout = layouts()
    memory = memory_of(layout, 0, seed)
    before = sums(memory, layout)
    run = kv_of(memory, layout.groups[0], layout.ranks[0].placements[0])[9, 1, 0, 1, 3]
    run[at] ^= 1 << bit
    run[: len(other)] ^= np.frombuffer(other, dtype=np.uint8)
    unchanged = other[at : at + 1] == bytes([1 << bit]) and not any(other[:at] + other[at + 1 :])
    changed = np.flatnonzero(before != sums(memory, layout)).tolist()
    assert ([] if unchanged else [1 * 4 + 0 * 2 + 1]) == changed


def test_two_faults_that_undo_each_other_in_a_plain_sum_are_found() -> None:
    """A token that is one more in one place and one less in another changes the sums."""
    layout = layouts()
    memory = memory_of(layout, 0)
    before = sums(memory, layout)
    kv = kv_of(memory, layout.groups[0], layout.ranks[0].placements[0])
    kv[3, 0, 0, 0, 0, 0] += 1
    kv[3, 0, 0, 0, 1, 0] -= 1
    assert before[0] != sums(memory, layout)[0]


def test_empty_memory_has_sums_that_differ_between_positions() -> None:
    """Zeros have a sum of their own in every cell and for every number of tokens."""
    layout = layouts()
    memory = np.zeros_like(memory_of(layout, 0))
    found = sums(memory, layout).tolist()
    assert 12 == len(set(found))
    assert 0 not in found


@given(st.permutations(AXES), st.sampled_from([1, 3, 4, 8]), st.permutations(range(16)))
@settings(max_examples=40, deadline=None)
def test_sums_do_not_depend_on_the_layout(order: list[str], tokens_per_block: int, ids: list[int]) -> None:
    """The same KV in another order of axes, block size and blocks, split over ranks, has the same sums."""
    source = layouts()
    memory = memory_of(source, 0)
    expected = sums(memory, source).reshape(3, 2, 2)
    content = kv_of(memory, source.groups[0], source.ranks[0].placements[0])
    tokens = [content[IDS[token // 4], :, :, :, token % 4] for token in range(TOKENS)]
    for split in ({"tensor_parallel": 2}, {"pipeline": (2, 1)}):
        layout = layouts(order=tuple(order), tokens_per_block=tokens_per_block, **split)
        for rank in (0, 1):
            placement = layout.ranks[rank].placements[0]
            listed = np.array(ids[: -(-TOKENS // tokens_per_block)], dtype=np.int64)
            pool = memory_of(layout, rank, seed=7)
            for token, kv in enumerate(tokens):
                _put(pool, layout, placement, int(listed[token // tokens_per_block]), token % tokens_per_block, kv)
            mine = expected[np.ix_(placement.layers, [0, 1], placement.heads)]
            assert mine.reshape(-1).tolist() == sums(pool, layout, rank, listed).tolist()


def _put(pool: Bytes, layout: WorkerLayout, placement: GroupPlacement, block: int, token: int, kv: Bytes) -> None:
    strides = placement.strides
    for layer, number in enumerate(placement.layers):
        for part in (0, 1):
            for head, head_number in enumerate(placement.heads):
                at = placement.base_bytes + block * strides.block + layer * strides.layer + part * strides.kv
                at += head * strides.head + token * strides.token
                elements = np.arange(layout.groups[0].head_dim)[:, None] * strides.dim + np.arange(2)
                pool[at + elements] = kv[number, part, head_number].reshape(-1, 2)


def test_cells_have_keys_of_their_own() -> None:
    """No two cells of the largest model have one key."""
    keys = cell_keys(range(256), 2, range(128))
    assert keys.size == np.unique(keys).size
