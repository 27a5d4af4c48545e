"""Every shape of worker decodes the same tokens, also from KV that a worker of another shape computed."""

from dataclasses import replace
from itertools import product

import pytest

from kvferry.core.dense import CROSS_LAYER, HND, NHD
from kvferry.demo.arithmetic import expected_bytes
from kvferry.reference_engine.block_allocator import OutOfBlocks
from kvferry.reference_engine.config import ModelConfig
from kvferry.reference_engine.generate import ReferenceEngine, generate_alone
from kvferry.reference_engine.group_blocks import GroupBlocks
from kvferry.reference_engine.paged_kv import blocks_needed
from kvferry.reference_engine.parallelism import Parallelism
from tests.unit.reference_engine.element_copy import copy_tokens
from tests.unit.reference_engine.pools import SMALL, PooledWorker, pooled_worker, text_tokens, view_in_pool

NEW = 12
PROMPT = text_tokens(100)
BLOCK_SIZES = (16, 32, 64, 128)
ORDERS = {"nhd": NHD, "hnd": HND, "cross-layer": CROSS_LAYER}
NOT_A_NUMBER = 0xFF
"""Bytes that no read can mistake for KV."""

FIVE_LAYERS = replace(SMALL, num_layers=5)
MLA = replace(FIVE_LAYERS, num_kv_heads=1, mla_latent_dim=12, mla_rope_dim=4)
MODELS = {
    "8 heads": replace(FIVE_LAYERS, num_kv_heads=8),
    "4 heads": FIVE_LAYERS,
    "4 heads, float32": replace(FIVE_LAYERS, kv_dtype="float32"),
    "1 head": replace(FIVE_LAYERS, num_kv_heads=1),
    "mla": MLA,
    "window": replace(FIVE_LAYERS, window_tokens=37),
    "mla and window": replace(MLA, window_tokens=16),
}

PAIRS = [
    pytest.param(
        (Parallelism(source_tp, 1 + index % 3), BLOCK_SIZES[index % 4], list(ORDERS)[index % 3]),
        (Parallelism(target_tp, 1 + (index // 3) % 3), BLOCK_SIZES[(index // 4 + index) % 4], list(ORDERS)[index % 2]),
        list(MODELS)[index % len(MODELS)],
        id=f"tp{source_tp}-{target_tp}-{index}",
    )
    for index, (source_tp, target_tp) in enumerate([*product((1, 2, 4, 8), repeat=2), (2, 4), (4, 2), (1, 8), (8, 1)])
]
"""Source and destination as (degrees, tokens of a block, memory order), and the model."""

Shape = tuple[Parallelism, int, str]


@pytest.mark.parametrize("name", MODELS)
def test_every_degree_decodes_the_tokens_of_one_rank(name: str) -> None:
    """Tensor parallel 1 to 8 over one to three stages of five layers give the tokens of a single rank."""
    model = MODELS[name]
    expected = generate_alone(model, PROMPT, NEW)
    for tensor, pipeline in product((1, 2, 4, 8), (1, 2, 3)):
        parallelism = Parallelism(tensor, pipeline)
        engine = ReferenceEngine.with_private_kv(model, num_blocks=4, block_tokens=32, parallelism=parallelism)
        assert expected == engine.generate(PROMPT, range(4), NEW), parallelism


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block_tokens", BLOCK_SIZES)
@pytest.mark.parametrize("order", ORDERS)
def test_every_block_size_and_memory_order_decodes_the_same(name: str, block_tokens: int, order: str) -> None:
    """How KV lies in the pool does not show in the tokens."""
    worker = worker_of(MODELS[name], (Parallelism(2, 2), block_tokens, order))
    tables = tables_of(MODELS[name], block_tokens, len(PROMPT) + NEW)
    assert generate_alone(MODELS[name], PROMPT, NEW) == worker.engine.generate(PROMPT, tables, NEW)


@pytest.mark.parametrize(("source", "target", "name"), PAIRS)
def test_kv_of_another_shape_decodes_on(source: Shape, target: Shape, name: str) -> None:
    """What a destination holds, copied by layer, head and token, decodes to the tokens of one process.

    Everything else at the destination is not a number: it is not needed. The bytes are those of the demo's arithmetic.
    """
    model = MODELS[name]
    here, there = worker_of(model, source), worker_of(model, target)
    held = tables_of(model, source[1], len(PROMPT))
    wanted = tables_of(model, target[1], len(PROMPT) + NEW)
    first = here.engine.prefill(PROMPT, held)
    copied = copy_tokens((here.layout, here.pools, held), (there.layout, there.pools, wanted), len(PROMPT))
    assert generate_alone(model, PROMPT, NEW) == [first, *there.engine.decode(first, len(PROMPT), wanted, NEW - 1)]
    assert expected_bytes(model, target[0].tensor, [len(PROMPT)]) == copied


def test_the_pairs_cover_every_two_values_that_matter() -> None:
    """The pairs hold every stage count with every other, every block size with every other, and every model."""
    cases = [param.values for param in PAIRS]
    shapes: list[tuple[Shape, Shape]] = [(case[0], case[1]) for case in cases]  # type: ignore[misc]
    assert set(product((1, 2, 3), repeat=2)) == {(a[0].pipeline, b[0].pipeline) for a, b in shapes}
    assert set(product(BLOCK_SIZES, repeat=2)) == {(a[1], b[1]) for a, b in shapes}
    assert {("nhd", "hnd"), ("hnd", "nhd")} <= {(a[2], b[2]) for a, b in shapes}
    assert set(MODELS) == {case[2] for case in cases}


def test_swapped_latents_change_the_tokens() -> None:
    """With MLA, too, two whole blocks that changed places are noticed."""
    worker = worker_of(MLA, (Parallelism(), 16, "nhd"))
    first = worker.engine.prefill(PROMPT, range(7))
    view = view_in_pool(worker.pools[0], worker.layout, 0, MLA)
    view[:, [1, 4]] = view[:, [4, 1]]
    assert generate_alone(MLA, PROMPT, NEW) != [first, *worker.engine.decode(first, 100, range(7), NEW - 1)]


def test_a_window_changes_the_tokens() -> None:
    """A window that hides something is no decoration; one that is as long as the sequence hides nothing."""
    alone = {window: generate_alone(replace(SMALL, window_tokens=window), PROMPT, NEW) for window in (0, 20, 200)}
    assert (True, False) == (alone[0] == alone[200], alone[0] == alone[20])


def test_groups_have_blocks_of_their_own() -> None:
    """The block tables of two groups differ, are all given back, and a shortage in one takes nothing of the other."""
    blocks = GroupBlocks(("full", "window"), 4, 16)
    taken = blocks.allocate(40, "a")
    assert {"full": [0, 1, 2], "window": [3, 2, 1]} == taken
    assert {"full": [0, 1], "window": [3, 2]} == blocks.first(taken, 17)
    with pytest.raises(OutOfBlocks, match="2 blocks wanted, 1 free"):
        blocks.allocate(32, "b")
    assert blocks.allocated_count == 6
    blocks.free(taken)
    assert blocks.allocated_count == 0


def worker_of(model: ModelConfig, shape: Shape) -> PooledWorker:
    """A worker of that shape with room for one request, its pools full of what is not a number."""
    parallelism, block_tokens, order = shape
    count = blocks_needed(len(PROMPT) + NEW, block_tokens) + 2
    return pooled_worker(
        model,
        num_blocks=count,
        block_tokens=block_tokens,
        parallelism=parallelism,
        order=ORDERS[order],
        fill=NOT_A_NUMBER,
    )


def tables_of(model: ModelConfig, block_tokens: int, tokens: int) -> dict[str, list[int]]:
    """Block tables, out of order and not the same in two groups."""
    count = blocks_needed(tokens, block_tokens)
    ids = list(range(count - 1, -1, -1)), list(range(1, count + 1))
    return dict(zip(model.layer_groups, ids, strict=False))
