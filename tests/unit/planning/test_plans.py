"""Plans against a transfer made element by element."""

from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import given, settings, strategies as st

from kvferry.core.blocks import BlockIds
from kvferry.core.pairing import mismatches
from kvferry.core.planning.planner import PairPlan
from tests.unit.planning import native, reference
from tests.unit.planning.random_layouts import Case, random_case


def arrays(lists: Mapping[str, Sequence[int]]) -> dict[str, BlockIds]:
    """Block lists as the planner takes them."""
    return {name: np.array(ids, dtype=np.int64) for name, ids in lists.items()}


def check(case: Case, seed: int) -> None:
    """Execute the plans of every destination rank, both forms, and compare every byte."""
    lists = case.source_blocks, case.destination_blocks
    rng = np.random.default_rng(seed)
    worlds = reference.build(case.source, case.destination, lists, case.tokens, case.shards, rng)
    assert () == mismatches(case.source, case.destination)
    for rank, pool in worlds.destination.items():
        pair = PairPlan(
            case.source,
            case.destination,
            rank,
            source_data_parallel_rank=case.shards[0],
            replica_shift=case.shift,
        )
        request = pair.request(arrays(lists[0]), arrays(lists[1]), case.tokens)
        flat, in_chunks, by_regions = pool.copy(), pool.copy(), pool.copy()
        native_flat, native_regions = pool.copy(), pool.copy()
        writes = np.zeros_like(pool)
        moved_bytes = 0
        for number, size in request.sizes.items():
            plan = request.plan(number)
            reference.run(plan, worlds.source[number], flat, writes)
            reference.run_strided(request.strided(number), worlds.source[number], by_regions)
            native.run([plan], worlds.source[number], native_flat)
            native.run(request.strided(number), worlds.source[number], native_regions)
            for chunk in request.chunks(number, 5):
                reference.run(chunk, worlds.source[number], in_chunks)
            assert size.total_bytes == plan.total_bytes == sum(c.total_bytes for c in request.strided(number))
            assert plan.piece_count <= size.pieces_max
            if len(case.source_blocks) == 1:
                assert 0 == reference.touching_pairs(plan)
            moved_bytes += plan.total_bytes
        assert worlds.written[rank].tolist() == writes.tolist()
        assert int(worlds.written[rank].sum()) == moved_bytes
        for actual in (flat, in_chunks, by_regions, native_flat, native_regions):
            assert worlds.expected[rank].tolist() == actual.tolist()


@settings(max_examples=8 * settings().max_examples)
@given(st.integers(0, 1 << 32))
def test_plans_do_what_an_element_wise_transfer_does(seed: int) -> None:
    """For any pair of layouts and any request, each wanted byte is written once with the right value, and no other."""
    check(random_case(seed), seed)
