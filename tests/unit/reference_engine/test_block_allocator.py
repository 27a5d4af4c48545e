"""The block allocator: no block twice, none lost, refusals change nothing."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvferry.core.errors import BlockError, InvalidArgument, ResourceExhausted
from kvferry.reference_engine.block_allocator import BlockAllocator, DoubleFree, OutOfBlocks, UnknownBlock

NUM_BLOCKS = 12


class AllocatorMachine(RuleBasedStateMachine):
    """Random allocations and frees against a plain dict of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(NUM_BLOCKS)
        self.held: dict[int, str] = {}

    @rule(count=st.integers(0, NUM_BLOCKS + 2), owner=st.sampled_from(["a", "b"]))
    def allocate(self, count: int, owner: str) -> None:
        """Blocks are new ones in range, or the call is refused because there are too few."""
        if count > NUM_BLOCKS - len(self.held):
            with pytest.raises(OutOfBlocks):
                self.allocator.allocate(count, owner)
            return
        blocks = self.allocator.allocate(count, owner)
        assert len(set(blocks)) == count
        assert set(blocks) <= set(range(NUM_BLOCKS)) - self.held.keys()
        self.held |= dict.fromkeys(blocks, owner)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        """Any subset of held blocks, in any order, can be given back."""
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True))
        self.allocator.free(blocks)
        for block in blocks:
            del self.held[block]

    @rule(data=st.data(), unknown=st.sampled_from([-1, NUM_BLOCKS]))
    def free_with_an_unknown_block(self, data: st.DataObject, unknown: int) -> None:
        """A list with an id out of range is refused whole."""
        good = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True)) if self.held else []
        with pytest.raises(UnknownBlock):
            self.allocator.free([*good, unknown])

    @precondition(lambda self: len(self.held) < NUM_BLOCKS)
    @rule(data=st.data())
    def free_with_a_free_block(self, data: st.DataObject) -> None:
        """A list with a block that nobody holds is refused whole."""
        good = data.draw(st.lists(st.sampled_from(sorted(self.held)), unique=True)) if self.held else []
        free = data.draw(st.sampled_from(sorted(set(range(NUM_BLOCKS)) - self.held.keys())))
        with pytest.raises(DoubleFree):
            self.allocator.free([*good, free])

    @invariant()
    def counts_agree(self) -> None:
        """Free, allocated and owned counts are those of the plain dict."""
        assert NUM_BLOCKS - len(self.held) == self.allocator.free_count
        assert len(self.held) == self.allocator.allocated_count
        owners = list(self.held.values())
        assert {owner: owners.count(owner) for owner in owners} == self.allocator.blocks_by_owner()


TestAllocatorMachine = AllocatorMachine.TestCase


def test_out_of_blocks_names_wanted_and_free() -> None:
    """Asking for too many says how many were wanted and how many are free, and takes none."""
    allocator = BlockAllocator(4)
    allocator.allocate(3)
    with pytest.raises(OutOfBlocks, match="2 blocks wanted, 1 free") as refused:
        allocator.allocate(2)
    assert refused.value.metadata == {"wanted": "2", "free": "1"}
    assert isinstance(refused.value, ResourceExhausted)
    assert allocator.free_count == 1


def test_a_block_named_twice_in_one_free_is_refused() -> None:
    """One call that frees a block twice is refused, names it, and frees nothing."""
    allocator = BlockAllocator(4)
    blocks = allocator.allocate(2)
    with pytest.raises(DoubleFree) as refused:
        allocator.free([*blocks, blocks[0]])
    assert refused.value.metadata["field"] == "blocks[2]"
    assert isinstance(refused.value, BlockError)
    assert allocator.allocated_count == 2


def test_the_block_freed_last_is_handed_out_first() -> None:
    """Freed blocks come back at once, in the order in which they were held."""
    allocator = BlockAllocator(10)
    allocator.allocate(3)
    blocks = allocator.allocate(3)
    allocator.free(blocks)
    assert blocks == allocator.allocate(3)


@pytest.mark.parametrize("count", [-1, 1.0, True])
def test_a_count_that_is_no_number_of_blocks_is_refused(count: int) -> None:
    """Negative, fractional and boolean counts are refused by name."""
    with pytest.raises(InvalidArgument, match="count="):
        BlockAllocator(4).allocate(count)


def test_an_allocator_without_blocks_is_refused() -> None:
    """An allocator needs at least one block."""
    with pytest.raises(InvalidArgument, match="num_blocks=0"):
        BlockAllocator(0)
