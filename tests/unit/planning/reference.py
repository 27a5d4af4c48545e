"""What a transfer must do, element by element, from the meaning of a layout alone. Knows nothing of the planner."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from kvferry.core.layouts import GroupPlacement, LayerGroup, WorkerLayout, end_bytes
from kvferry.core.planning.copies import CopyPlan, StridedCopy
from kvferry.core.planning.tokens import TokenRange

Pool = npt.NDArray[np.uint8]
Element = tuple[int, int, int, int, int]
"""Layer, K or V, head, token, dim: as the model counts them."""
Lists = Mapping[str, Sequence[int]]


def address(group: LayerGroup, placement: GroupPlacement, blocks: Sequence[int], total: int, element: Element) -> int:
    """The first byte of an element on a rank that holds ``total`` tokens in ``blocks``, the last of them at the end."""
    layer, kv, head, token, dim = element
    blocks_in_all = -(-total // group.tokens_per_block)
    block = blocks[token // group.tokens_per_block - (blocks_in_all - len(blocks))]
    strides = placement.strides
    return (
        placement.base_bytes
        + block * strides.block
        + placement.layers.index(layer) * strides.layer
        + kv * strides.kv
        + placement.heads.index(head) * strides.head
        + token % group.tokens_per_block * strides.token
        + dim * strides.dim
    )


def wanted_tokens(group: LayerGroup, tokens: TokenRange) -> range:
    """The tokens of a group that a destination needs."""
    if group.per_sequence:
        return range(1)
    first = tokens.start
    if group.window_tokens:
        first = max(first, tokens.stop - group.window_tokens)
    return range(first, tokens.stop)


def totals(group: LayerGroup, tokens: TokenRange) -> tuple[int, int]:
    """Tokens that source and destination hold in the end."""
    return (1, 1) if group.per_sequence else (tokens.total, tokens.stop)


def elements(group: LayerGroup, placement: GroupPlacement, tokens: range) -> Iterator[Element]:
    """Every element of these tokens that a rank holds."""
    kinds = range(group.kv_factor)
    return product(placement.layers, kinds, placement.heads, tokens, range(group.head_dim))


@dataclass
class Worlds:
    """The pools of both workers before a transfer, and the destination's as they must be after it."""

    source: dict[int, Pool]
    destination: dict[int, Pool]
    expected: dict[int, Pool]
    written: dict[int, Pool]
    """1 for each byte of the destination that must be written."""


def pool_bytes(layout: WorkerLayout, rank: int) -> int:
    """As many bytes as a rank's pool needs, and a few more."""
    return max(end_bytes(layout.group(p.group), p) for p in layout.ranks[rank].placements) + 8


def build(
    source: WorkerLayout,
    destination: WorkerLayout,
    lists: tuple[Lists, Lists],
    tokens: TokenRange,
    shards: tuple[int, int],
    rng: np.random.Generator,
) -> Worlds:
    """Random pools, in which source ranks that hold the same element agree on it."""
    sources = {r.rank: rng.integers(0, 256, pool_bytes(source, r.rank), np.uint8) for r in source.ranks_of(shards[0])}
    destinations = {
        r.rank: rng.integers(0, 256, pool_bytes(destination, r.rank), np.uint8) for r in destination.ranks_of(shards[1])
    }
    worlds = Worlds(
        sources,
        destinations,
        {rank: pool.copy() for rank, pool in destinations.items()},
        {rank: np.zeros_like(pool) for rank, pool in destinations.items()},
    )
    for name in lists[0]:
        truth = _agree(worlds, source, name, lists[0][name], tokens, destination.group(name))
        _expect(worlds, destination, name, lists[1][name], tokens, truth)
    return worlds


def _agree(
    worlds: Worlds, source: WorkerLayout, name: str, blocks: Sequence[int], tokens: TokenRange, wanted: LayerGroup
) -> dict[Element, Pool]:
    truth: dict[Element, Pool] = {}
    group = source.group(name)
    size = group.element_type.size_bytes
    for rank, pool in worlds.source.items():
        placement = source.ranks[rank].placement(name)
        if placement is None:
            continue
        for element in elements(group, placement, wanted_tokens(wanted, tokens)):
            at = address(group, placement, blocks, totals(group, tokens)[0], element)
            if element in truth:
                pool[at : at + size] = truth[element]
            else:
                truth[element] = pool[at : at + size]
    return truth


def _expect(
    worlds: Worlds,
    destination: WorkerLayout,
    name: str,
    blocks: Sequence[int],
    tokens: TokenRange,
    truth: dict[Element, Pool],
) -> None:
    group = destination.group(name)
    size = group.element_type.size_bytes
    for rank in worlds.destination:
        placement = destination.ranks[rank].placement(name)
        if placement is None:
            continue
        for element in elements(group, placement, wanted_tokens(group, tokens)):
            at = address(group, placement, blocks, totals(group, tokens)[1], element)
            worlds.expected[rank][at : at + size] = truth[element]
            worlds.written[rank][at : at + size] += 1


def run(plan: CopyPlan, source: Pool, destination: Pool, writes: Pool | None = None) -> None:
    """Do what a plan says, byte by byte, and count the writes to each byte."""
    firsts = np.cumsum(plan.lengths) - plan.lengths
    inside = np.arange(int(plan.lengths.sum())) - np.repeat(firsts, plan.lengths)
    there = np.repeat(plan.destination_offsets, plan.lengths) + inside
    destination[there] = source[np.repeat(plan.source_offsets, plan.lengths) + inside]
    if writes is not None:
        np.add.at(writes, there, 1)


def run_strided(copies: Sequence[StridedCopy], source: Pool, destination: Pool) -> None:
    """Do what region copies say, region by region."""
    for copy in copies:
        shape = (*(axis.length for axis in copy.axes), copy.run_bytes)
        for here, there in zip(copy.source_bases.tolist(), copy.destination_bases.tolist(), strict=True):
            steps = [[axis[side] for axis in copy.axes] for side in (1, 2)]
            read = np.lib.stride_tricks.as_strided(source[here:], shape, (*steps[0], 1))
            np.lib.stride_tricks.as_strided(destination[there:], shape, (*steps[1], 1))[...] = read


def touching_pairs(plan: CopyPlan) -> int:
    """Pairs of runs that touch in both pools and so could have been one."""
    starts = set(zip(plan.source_offsets.tolist(), plan.destination_offsets.tolist(), strict=True))
    ends = zip(
        (plan.source_offsets + plan.lengths).tolist(),
        (plan.destination_offsets + plan.lengths).tolist(),
        strict=True,
    )
    return sum(end in starts for end in ends)
