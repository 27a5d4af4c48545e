"""Random layouts, requests and regions."""

import numpy as np
from hypothesis import strategies as st

from kvferry.core.checksums.regions import DigestRegion, TokenRanges, digest_region
from kvferry.core.dense import AXES, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, LayerGroup, WorkerLayout, end_bytes
from tests.unit.checksums.reference import Bytes


def layouts(
    *,
    kv_factor: int = 2,
    head_dim: int = 8,
    element_type: ElementType = ElementType.BFLOAT16,
    tokens_per_block: int = 4,
    order: tuple[str, ...] = ("layer", "kv", "block", "token", "head", "dim"),
    tensor_parallel: int = 1,
    pipeline: tuple[int, ...] = (),
    window_tokens: int = 0,
) -> WorkerLayout:
    """3 layers and 2 heads, 16 blocks."""
    model = DenseModel("model", 3, 2, head_dim, tokens_per_block, element_type, kv_factor, window_tokens)
    return dense_layout(model, 16, tensor_parallel, order, pipeline=pipeline)


def memory_of(layout: WorkerLayout, rank: int, seed: int = 0) -> Bytes:
    """A pool of a rank, of random bytes."""
    size = max(end_bytes(layout.group(p.group), p) for p in layout.ranks[rank].placements)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@st.composite
def regions(draw: st.DrawFn) -> tuple[DigestRegion, Bytes]:
    """A region of random tokens in a random layout, and the pool."""
    layout = layouts(
        kv_factor=draw(st.sampled_from([1, 2])),
        head_dim=draw(st.sampled_from([1, 3, 32, 64, 100, 300, 600])),
        element_type=draw(st.sampled_from([ElementType.BFLOAT16, ElementType.INT8, ElementType.FLOAT32])),
        tokens_per_block=draw(st.sampled_from([1, 3, 4])),
        order=tuple(draw(st.permutations(AXES))),
        tensor_parallel=draw(st.sampled_from([1, 2])),
    )
    group: LayerGroup = layout.groups[0]
    listed = np.array(draw(st.permutations(range(16)))[: draw(st.integers(1, 5))], dtype=np.int64)
    capacity = listed.size * group.tokens_per_block
    total = draw(st.integers(capacity - group.tokens_per_block + 1, capacity))
    cuts = sorted(draw(st.sets(st.integers(0, total), min_size=2, max_size=4)))
    firsts = np.array(cuts[:-1], dtype=np.int64)
    counts = np.array(cuts[1:], dtype=np.int64) - firsts
    row_count = draw(st.integers(1, 2))
    rows = np.array([draw(st.integers(0, row_count - 1)) for _ in firsts], dtype=np.int64)
    placement = layout.ranks[0].placements[0]
    ranges = TokenRanges(firsts, counts, rows, row_count)
    return digest_region(group, placement, listed, total, ranges), memory_of(layout, 0, draw(st.integers(0, 99)))
