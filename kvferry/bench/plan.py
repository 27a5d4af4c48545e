"""How long planning takes, how much memory it needs, and how many pieces it makes."""

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kvferry.bench.figures import Timing
from kvferry.core.blocks import BlockLists
from kvferry.core.dense import HND, NHD, DenseModel, dense_layout
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.core.planning.planner import PairPlan, RequestPlan
from kvferry.core.planning.tokens import TokenRange

GROUP = "full"
LLAMA_70B = DenseModel("llama-3-70b", 80, 8, 128, 16, ElementType.BFLOAT16)
DEEPSEEK_V3 = DenseModel("deepseek-v3", 61, 1, 576, 64, ElementType.BFLOAT16, kv_factor=1)
_POOL_SPARE = 2
"""A pool has room for so many requests."""


@dataclass(frozen=True, slots=True)
class PlanCase:
    """A pair of layouts and the tokens of a request."""

    name: str
    source: WorkerLayout
    destination: WorkerLayout
    tokens: int
    shuffled: bool = True
    """Whether blocks are anywhere in the pool, or one after the other."""


@dataclass(frozen=True, slots=True)
class PlanFigures:
    """What was measured for one destination rank of a case."""

    case: PlanCase
    cold: Timing
    """The pair's part included."""
    cached: Timing
    """The request's part only."""
    row_count: int
    """Pieces before any are joined: one for each layer, K or V, head and token."""
    piece_count: int
    total_bytes: int
    array_bytes: int
    """Of the arrays that are returned."""
    peak_bytes: int
    """Most that was allocated at a time, the arrays and the pair's part included."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.case.name,
            "tokens": self.case.tokens,
            "cold_ms": round(self.cold.median_s * 1e3, 3),
            "cached_ms": round(self.cached.median_s * 1e3, 3),
            "row_count": self.row_count,
            "piece_count": self.piece_count,
            "total_bytes": self.total_bytes,
            "mean_piece_bytes": round(self.total_bytes / max(self.piece_count, 1), 1),
            "array_bytes": self.array_bytes,
            "peak_bytes": self.peak_bytes,
            "memory_ratio": round(self.peak_bytes / max(self.array_bytes, 1), 3),
        }


def plan_cases(tokens: int) -> list[PlanCase]:
    """Pairs that are met in practice; the first is the one to compare by."""
    large = replace(LLAMA_70B, tokens_per_block=64)
    return [
        PlanCase("llama 70B, TP 4 to 8, HND", *_pair(LLAMA_70B, tokens, (4, 8), (HND, HND)), tokens),
        PlanCase("llama 70B, TP 8 to 4, HND", *_pair(LLAMA_70B, tokens, (8, 4), (HND, HND)), tokens),
        PlanCase("llama 70B, TP 4 to 4, HND", *_pair(LLAMA_70B, tokens, (4, 4), (HND, HND)), tokens),
        PlanCase(
            "llama 70B, TP 4 to 4, HND, blocks in order", *_pair(LLAMA_70B, tokens, (4, 4), (HND, HND)), tokens, False
        ),
        PlanCase(
            "llama 70B, TP 4 to 8, HND, blocks of 16 to 64",
            *_pair(LLAMA_70B, tokens, (4, 8), (HND, HND), wanted=large),
            tokens,
        ),
        PlanCase("llama 70B, TP 4 to 8, NHD", *_pair(LLAMA_70B, tokens, (4, 8), (NHD, NHD)), tokens),
        PlanCase("deepseek V3 (MLA), TP 8 to 8", *_pair(DEEPSEEK_V3, tokens, (8, 8), (NHD, NHD)), tokens),
    ]


def measure_plan(case: PlanCase, repeats: int) -> PlanFigures:
    """Plan a case ``repeats`` times from nothing, and as often with the pair's part at hand."""
    rank = len(case.destination.ranks) // 2
    tokens = TokenRange.whole(case.tokens)
    lists = [_blocks(layout, case, seed) for seed, layout in enumerate((case.source, case.destination))]

    def cold() -> RequestPlan:
        request = PairPlan(case.source, case.destination, rank).request(lists[0], lists[1], tokens)
        request.plans()
        return request

    request = cold()
    pair = PairPlan(case.source, case.destination, rank)
    cold_timing = _timed(cold, repeats)
    cached_timing = _timed(lambda: pair.request(lists[0], lists[1], tokens).plans(), repeats)
    tracemalloc.start()
    plans = PairPlan(case.source, case.destination, rank).request(lists[0], lists[1], tokens).plans()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return PlanFigures(
        case=case,
        cold=cold_timing,
        cached=cached_timing,
        row_count=sum(request.row_count(number) for number in plans),
        piece_count=sum(plan.piece_count for plan in plans.values()),
        total_bytes=sum(plan.total_bytes for plan in plans.values()),
        array_bytes=sum(3 * plan.lengths.nbytes for plan in plans.values()),
        peak_bytes=peak,
    )


def _pair(
    held: DenseModel,
    tokens: int,
    tensor_parallel: tuple[int, int],
    orders: tuple[tuple[str, ...], tuple[str, ...]],
    wanted: DenseModel | None = None,
) -> tuple[WorkerLayout, WorkerLayout]:
    source, destination = (
        dense_layout(model, -(-tokens // model.tokens_per_block) * _POOL_SPARE, parallel, order, GROUP)
        for model, parallel, order in zip((held, wanted or held), tensor_parallel, orders, strict=True)
    )
    return source, destination


def _blocks(layout: WorkerLayout, case: PlanCase, seed: int) -> BlockLists:
    count = -(-case.tokens // layout.group(GROUP).tokens_per_block)
    ids = np.arange(layout.block_count(GROUP), dtype=np.int64)
    if case.shuffled:
        np.random.default_rng(seed).shuffle(ids)
    return {GROUP: ids[:count]}


def _timed(planned: Callable[[], object], repeats: int) -> Timing:
    rounds = []
    for _ in range(repeats):
        started = time.perf_counter()
        made = planned()
        rounds.append(time.perf_counter() - started)
        del made
    return Timing(tuple(rounds))
