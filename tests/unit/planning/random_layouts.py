"""Random pairs of layouts of one model, and random requests for them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvferry.core.dense import AXES
from kvferry.core.layouts import (
    ElementType,
    GroupPlacement,
    LayerGroup,
    RankLayout,
    Strides,
    WorkerLayout,
    end_bytes,
    validate_layout,
)
from kvferry.core.planning.tokens import TokenRange

BLOCK_SIZES = (1, 2, 3, 4, 6, 8)
TOKENS_MAX = 20


@dataclass(frozen=True)
class Case:
    """A pair, a request, and which data-parallel ranks take part."""

    source: WorkerLayout
    destination: WorkerLayout
    source_blocks: dict[str, list[int]]
    destination_blocks: dict[str, list[int]]
    tokens: TokenRange
    shards: tuple[int, int]
    shift: int


def random_case(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(seed)  # noqa: S311 - it only has to be the same every time
    groups = _groups(rng)
    source, destination = _layout(rng, groups), _layout(rng, groups)
    total = rng.randint(1, TOKENS_MAX)
    has_state = any(group.per_sequence for group in groups)
    stop = total if has_state or rng.random() < 0.7 else rng.randint(1, total)
    tokens = TokenRange(rng.randint(0, stop) if rng.random() < 0.5 else 0, stop, total)
    source = _widen_windows(rng, source, tokens)
    return Case(
        source=source,
        destination=destination,
        source_blocks=_lists(rng, source, destination, tokens, total),
        destination_blocks=_lists(rng, destination, destination, tokens, stop),
        tokens=tokens,
        shards=(rng.randrange(source.data_parallel_size), rng.randrange(destination.data_parallel_size)),
        shift=rng.randint(0, 3),
    )


def _groups(rng: random.Random) -> tuple[LayerGroup, ...]:
    first = rng.randint(0, 2)
    kinds = rng.choice((["full"], ["full"], ["window"], ["full", "window"], ["full", "state"], ["scaled"], ["state"]))
    groups: list[LayerGroup] = []
    for kind in kinds:
        layers = tuple(range(first, first + rng.randint(1, 4)))
        first = layers[-1] + 1 + rng.randint(0, 1)
        group = LayerGroup(
            name=kind,
            element_type=rng.choice((ElementType.INT8, ElementType.BFLOAT16, ElementType.FLOAT32)),
            kv_factor=rng.choice((1, 2)),
            total_kv_heads=rng.choice((1, 2, 3, 4)),
            head_dim=rng.randint(1, 3),
            tokens_per_block=1,
            layers=layers,
            window_tokens=rng.randint(1, 12) if kind == "window" else 0,
            per_sequence=kind == "state",
        )
        groups.append(group)
        if kind == "scaled":
            groups[-1] = replace(group, element_type=ElementType.INT8)
            groups.append(
                replace(group, name="scales", element_type=ElementType.FLOAT32, head_dim=1, scales_of="scaled")
            )
    return tuple(groups)


def _layout(rng: random.Random, groups: Sequence[LayerGroup]) -> WorkerLayout:
    sized = tuple(g if g.per_sequence else replace(g, tokens_per_block=rng.choice(BLOCK_SIZES)) for g in groups)
    stages, ranks_each, shards = rng.randint(1, 3), rng.randint(1, 4), rng.choice((1, 1, 2))
    spread = {
        group.name: (
            _spread(rng, group.layers, stages),
            _spread(rng, tuple(range(group.total_kv_heads)), ranks_each),
        )
        for group in sized
    }
    order, tight = rng.sample(AXES, len(AXES)), rng.random() < 0.6
    ranks: list[RankLayout] = []
    for shard in range(shards):
        for stage in range(stages):
            for part in range(ranks_each):
                held = []
                base = rng.randint(0, 3) * 4
                for group in sized:
                    layers, heads = spread[group.name][0][stage], spread[group.name][1][part]
                    if layers and heads:
                        held.append(_placement(rng, group, layers, heads, base, order, tight))
                        base = end_bytes(group, held[-1]) + (0 if tight else rng.randint(0, 9))
                if held:
                    ranks.append(RankLayout(len(ranks), tuple(held), shard))
    layout = WorkerLayout("m", sized, tuple(ranks))
    validate_layout(layout)
    return layout


def _spread(rng: random.Random, items: tuple[int, ...], parts: int) -> list[tuple[int, ...]]:
    """Each item to one part or to several; in runs, or anyhow."""
    if rng.random() < 0.6:
        if len(items) < parts:
            return [(items[part * len(items) // parts],) for part in range(parts)]
        ends = [(part + 1) * len(items) // parts for part in range(parts)]
        return [items[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    found: list[set[int]] = [set() for _ in range(parts)]
    for item in items:
        found[rng.randrange(parts)].add(item)
        if rng.random() < 0.3:
            found[rng.randrange(parts)].add(item)
    return [tuple(sorted(part)) for part in found]


def _placement(
    rng: random.Random,
    group: LayerGroup,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    base: int,
    order: list[str],
    tight: bool,
) -> GroupPlacement:
    count = rng.randint(-(-TOKENS_MAX // group.tokens_per_block), -(-TOKENS_MAX // group.tokens_per_block) + 3)
    shape = (count, len(layers), group.kv_factor, len(heads), group.tokens_per_block, group.head_dim)
    counts = dict(zip(AXES, shape, strict=True))
    if rng.random() < 0.2:
        order = rng.sample(AXES, len(AXES))
    size = group.element_type.size_bytes
    strides: dict[str, int] = {}
    step = size
    for axis in reversed(order):
        strides[axis] = step
        step *= counts[axis]
        if not tight and rng.random() < 0.3:
            step += size * rng.randint(0, 2)
    return GroupPlacement(group.name, layers, heads, count, base, Strides(**strides))


def _widen_windows(rng: random.Random, layout: WorkerLayout, tokens: TokenRange) -> WorkerLayout:
    """Let the source keep more than the destination needs, as it must where the request ends before its tokens."""
    groups = tuple(
        replace(g, window_tokens=rng.choice((0, g.window_tokens + tokens.total - tokens.stop + rng.randint(0, 2))))
        if g.window_tokens
        else g
        for g in layout.groups
    )
    return replace(layout, groups=groups)


def _lists(
    rng: random.Random, layout: WorkerLayout, destination: WorkerLayout, tokens: TokenRange, total: int
) -> dict[str, list[int]]:
    """Random blocks, now and then neighbours, and now and then without the first ones that are not needed."""
    lists: dict[str, list[int]] = {}
    for group in layout.groups:
        count = 1 if group.per_sequence else -(-total // group.tokens_per_block)
        limit = layout.block_count(group.name)
        if rng.random() < 0.5:
            first = rng.randint(0, limit - count)
            ids = list(range(first, first + count))
        else:
            ids = rng.sample(range(limit), count)
        if rng.random() < 0.3:
            cuts = sorted(rng.sample(range(count + 1), min(2, count + 1)))
            parts = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, count], strict=True)]
            ids = [block for part in rng.sample(parts, len(parts)) for block in part]
        window = destination.group(group.name).window_tokens
        needed = max(tokens.start, tokens.stop - window if window else 0)
        skipped = min(needed, tokens.stop) // group.tokens_per_block
        if not group.per_sequence and rng.random() < 0.4:
            ids = ids[rng.randint(0, min(skipped, count - 1)) :]
        lists[group.name] = ids
    return lists
