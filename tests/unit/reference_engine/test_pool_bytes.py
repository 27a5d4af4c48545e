"""The KV is nothing but the pool's bytes: moved, they decode on; wrong, they show."""

import pytest
import torch

from kvferry.core.dense import CROSS_LAYER, HND, NHD
from kvferry.reference_engine.config import TINY
from kvferry.reference_engine.generate import NonFiniteLogits, generate_alone
from kvferry.reference_engine.parallelism import Parallelism
from tests.unit.reference_engine.pools import SMALL, pooled_worker, text_tokens, view_in_pool

NEW = 16
CANARY = 0xA5


@pytest.mark.parametrize("order", [NHD, HND, CROSS_LAYER], ids=["NHD", "HND", "cross-layer"])
def test_moved_bytes_decode_on(order: tuple[str, ...]) -> None:
    """In any memory order, bytes copied to another worker's pools decode to the tokens of one process."""
    prompt = text_tokens(100)
    source = pooled_worker(SMALL, num_blocks=8, parallelism=Parallelism(tensor=2), order=order)
    target = pooled_worker(SMALL, num_blocks=8, parallelism=Parallelism(tensor=2), order=order, fill=CANARY)
    first = source.engine.prefill(prompt, range(8))
    for to, read in zip(target.pools, source.pools, strict=True):
        to.copy_(read)
        read.fill_(CANARY)
    assert generate_alone(SMALL, prompt, NEW) == [first, *target.engine.decode(first, 100, range(8), NEW - 1)]


def test_only_the_prompt_blocks_move_to_other_block_ids() -> None:
    """Copying just the prompt's blocks, to other ids of a dirty pool, is enough to decode on."""
    prompt = text_tokens(100)
    source = pooled_worker(SMALL, num_blocks=7)
    target = pooled_worker(SMALL, num_blocks=20, order=HND, fill=CANARY)
    first = source.engine.prefill(prompt, range(7))
    blocks = [13, 2, 19, 0, 7, 8, 5]
    read = view_in_pool(source.pools[0], source.layout, 0, SMALL)
    view_in_pool(target.pools[0], target.layout, 0, SMALL)[:, blocks] = read
    blocks.append(11)
    assert generate_alone(SMALL, prompt, NEW) == [first, *target.engine.decode(first, 100, blocks, NEW - 1)]


@pytest.mark.parametrize("order", [NHD, HND, CROSS_LAYER], ids=["NHD", "HND", "cross-layer"])
def test_prefill_writes_its_tokens_slots_and_no_other_byte(order: tuple[str, ...]) -> None:
    """Prefill changes the pool at the prompt's own positions, for every layer and head, and nowhere else."""
    worker = pooled_worker(SMALL, num_blocks=6, order=order, fill=CANARY)
    worker.engine.prefill(text_tokens(40), [4, 1, 3])
    view = view_in_pool(worker.pools[0], worker.layout, 0, SMALL)
    untouched = torch.full_like(view, 0).view(torch.int16).fill_(CANARY * 0x0101 - 0x10000)
    per_token = (view.view(torch.int16) != untouched).any(dim=-1).all(dim=4).all(dim=2).all(dim=0)
    any_per_token = (view.view(torch.int16) != untouched).any(dim=-1).any(dim=4).any(dim=2).any(dim=0)
    expected = torch.zeros(6, 16, dtype=torch.bool)
    expected[[4, 1]] = True
    expected[3, :8] = True
    assert expected.tolist() == per_token.tolist()
    assert expected.tolist() == any_per_token.tolist()


@pytest.mark.parametrize("prompt_tokens", [160, 2000])
def test_swapped_blocks_change_the_tokens(prompt_tokens: int) -> None:
    """Two whole blocks that changed places are noticed: the decoded tokens differ."""
    prompt = text_tokens(prompt_tokens)
    worker = pooled_worker(TINY, num_blocks=126)
    first = worker.engine.prefill(prompt, range(126))
    view = view_in_pool(worker.pools[0], worker.layout, 0, TINY)
    view[:, [3, 7]] = view[:, [7, 3]]
    expected = generate_alone(TINY, prompt, NEW)
    assert expected != [first, *worker.engine.decode(first, prompt_tokens, range(126), NEW - 1)]


def test_a_missing_block_changes_the_tokens() -> None:
    """A block that never arrived is noticed: the decoded tokens differ."""
    prompt = text_tokens(160)
    worker = pooled_worker(TINY, num_blocks=11)
    first = worker.engine.prefill(prompt, range(11))
    view_in_pool(worker.pools[0], worker.layout, 0, TINY)[:, 4] = 0
    expected = generate_alone(TINY, prompt, NEW)
    assert expected != [first, *worker.engine.decode(first, 160, range(11), NEW - 1)]


def test_bytes_that_are_no_numbers_are_a_typed_error() -> None:
    """KV bytes that read as NaN end in an error that names the position, not in a token."""
    worker = pooled_worker(SMALL, num_blocks=2, fill=0xFF)
    with pytest.raises(NonFiniteLogits) as refused:
        worker.engine.decode(65, 10, [0, 1], 3)
    assert refused.value.metadata == {"position": "10"}
