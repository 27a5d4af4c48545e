"""A request planned a span of tokens at a time copies what the whole request does, each byte once."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, strategies as st

from kvferry.core.planning.planner import PairPlan
from tests.unit.planning import reference
from tests.unit.planning.random_layouts import random_case
from tests.unit.planning.test_plans import arrays


@given(st.integers(0, 1 << 32), st.lists(st.integers(0, 100), max_size=3))
def test_spans_together_are_the_whole_request(seed: int, cuts: list[int]) -> None:
    """Whatever the layouts, windows and prefix, and wherever the tokens are cut, every byte is copied by one span."""
    case = random_case(seed)
    tokens = case.tokens
    if tokens.start == tokens.stop:
        return
    lists = case.source_blocks, case.destination_blocks
    worlds = reference.build(case.source, case.destination, lists, tokens, case.shards, np.random.default_rng(seed))
    inside = sorted({tokens.start + cut % (tokens.stop - tokens.start) for cut in cuts} - {tokens.start})
    ends = [tokens.start, *inside, tokens.stop]
    for rank, pool in worlds.destination.items():
        pair = PairPlan(
            case.source, case.destination, rank, source_data_parallel_rank=case.shards[0], replica_shift=case.shift
        )
        writes = np.zeros_like(pool)
        for span in pairwise(ends):
            request = pair.request(arrays(lists[0]), arrays(lists[1]), replace(tokens, span=span))
            for number, plan in request.plans().items():
                assert plan.total_bytes == request.sizes[number].total_bytes
                reference.run(plan, worlds.source[number], pool, writes)
        assert worlds.written[rank].tolist() == writes.tolist()
        assert worlds.expected[rank].tolist() == pool.tolist()
