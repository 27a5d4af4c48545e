"""Every way to share a model out, in real memory, against every other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice, product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from kvferry.core.dense import CROSS_LAYER, HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, GroupPlacement, LayerGroup, WorkerLayout, shape_of
from kvferry.core.pairing import mismatches
from kvferry.core.planning.planner import PairPlan
from kvferry.core.planning.tokens import TokenRange
from tests.unit.planning import native, reference

TENSOR_PARALLEL = (1, 2, 4, 8)
PIPELINES = ((3,), (2, 1), (1, 1, 1))
ORDERS = (NHD, HND)
BLOCK_SIZES = (16, 32, 64, 128)
MODELS = ((8, 2), (4, 2), (1, 2), (1, 1))
"""KV heads and the kv factor: grouped queries, one head, MLA."""
WINDOWS = (0, 50)
RANGES = (TokenRange(0, 150, 150), TokenRange(37, 150, 150), TokenRange(0, 128, 128))
SPARE_BLOCKS = 3

Kv = npt.NDArray[np.uint16]
"""``[layer, kv, head, token, dim]``."""


@dataclass(frozen=True)
class Corner:
    """One side of a case."""

    tensor_parallel: int
    pipeline: tuple[int, ...]
    order: tuple[str, ...]
    block_tokens: int

    def layout(self, model: DenseModel) -> WorkerLayout:
        """The layout of this side."""
        blocks = -(-150 // self.block_tokens) + SPARE_BLOCKS
        sized = replace(model, tokens_per_block=self.block_tokens)
        return dense_layout(sized, blocks, self.tensor_parallel, self.order, pipeline=self.pipeline)


def cases(tensor_parallel: tuple[int, int]) -> Iterator[tuple[Corner, Corner, tuple[int, int], int, TokenRange]]:
    """All of the matrix in the long run; else block sizes, windows and ranges take turns over all that is left."""
    shapes = product(PIPELINES, PIPELINES, ORDERS, ORDERS, MODELS)
    rest = product(BLOCK_SIZES, BLOCK_SIZES, WINDOWS)
    every = settings().max_examples > 100
    sizes = product(shapes, rest) if every else zip(shapes, cycle(islice(rest, 31)), strict=False)
    for index, ((here, there, order, other, model), (small, large, window)) in enumerate(sizes):
        source = Corner(tensor_parallel[0], here, order, small)
        destination = Corner(tensor_parallel[1], there, CROSS_LAYER if index % 7 == 0 else other, large)
        yield source, destination, model, window, RANGES[index % len(RANGES)]


def view(group: LayerGroup, placement: GroupPlacement, pool: reference.Pool) -> Kv:
    """A rank's pool as ``[block, layer, kv, head, token, dim]``."""
    elements = pool[placement.base_bytes :].view(np.uint16)
    return np.lib.stride_tricks.as_strided(elements, shape_of(group, placement), placement.strides)


def store(layout: WorkerLayout, rank: int, pool: reference.Pool, ids: list[int], kv: Kv, tokens: range) -> None:
    """Write a rank's part of these tokens of ``kv`` into its blocks, as an engine does."""
    group, placement = layout.groups[0], layout.ranks[rank].placements[0]
    part = kv[np.ix_(placement.layers, range(kv.shape[1]), placement.heads)]
    blocks = view(group, placement, pool)
    positions = np.arange(tokens.start, tokens.stop)
    where = np.array(ids)[positions // group.tokens_per_block], positions % group.tokens_per_block
    blocks[where[0], :, :, :, where[1]] = np.moveaxis(part[:, :, :, positions], 3, 0)


def block_ids(layout: WorkerLayout, tokens: int, rng: np.random.Generator) -> list[int]:
    """Random blocks for so many tokens."""
    count = -(-tokens // layout.groups[0].tokens_per_block)
    ids: list[int] = rng.permutation(layout.block_count("full"))[:count].tolist()
    return ids


@pytest.mark.parametrize(
    "tensor_parallel", list(product(TENSOR_PARALLEL, TENSOR_PARALLEL)), ids=lambda tp: f"{tp[0]}to{tp[1]}"
)
def test_the_matrix(tensor_parallel: tuple[int, int]) -> None:
    """Whatever the two sides are, every rank ends up with exactly its part of the KV, and nothing else changes."""
    rng = np.random.default_rng(tensor_parallel)
    for here, there, (heads, kv_factor), window, tokens in cases(tensor_parallel):
        model = DenseModel("m", 3, heads, 4, 16, ElementType.BFLOAT16, kv_factor, window)
        source, destination = here.layout(model), there.layout(model)
        assert () == mismatches(source, destination)
        kv = rng.integers(0, 1 << 16, (3, kv_factor, heads, tokens.total, 4), np.uint16)
        ids = block_ids(source, tokens.total, rng), block_ids(destination, tokens.stop, rng)
        pools = [
            rng.integers(0, 256, reference.pool_bytes(source, rank), np.uint8) for rank in range(len(source.ranks))
        ]
        for rank, pool in enumerate(pools):
            store(source, rank, pool, ids[0], kv, range(tokens.total))
        lists = [{"full": np.array(listed, dtype=np.int64)} for listed in ids]
        needed = range(max(tokens.start, tokens.stop - window if window else 0), tokens.stop)
        for rank in range(len(destination.ranks)):
            pool = rng.integers(0, 256, reference.pool_bytes(destination, rank), np.uint8)
            expected, by_regions = pool.copy(), pool.copy()
            natively = pool.copy(), pool.copy()
            store(destination, rank, expected, ids[1], kv, needed)
            request = PairPlan(source, destination, rank).request(lists[0], lists[1], tokens)
            moved = 0
            for number, plan in request.plans().items():
                reference.run(plan, pools[number], pool)
                reference.run_strided(request.strided(number), pools[number], by_regions)
                native.run([plan], pools[number], natively[0])
                native.run(request.strided(number), pools[number], natively[1])
                moved += plan.total_bytes
            placement = destination.ranks[rank].placements[0]
            each = len(placement.layers) * kv_factor * len(placement.heads) * 4 * 2
            assert len(needed) * each == moved
            for actual in (pool, by_regions, *natively):
                assert np.array_equal(expected, actual), (here, there, heads, kv_factor, window, tokens, rank)
