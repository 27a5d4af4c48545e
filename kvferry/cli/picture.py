"""A small picture of who holds what: layers down, heads across, and from which source rank each cell is read."""

from collections.abc import Iterator, Sequence

from kvferry.core.layouts import LayerGroup, RankLayout, WorkerLayout
from kvferry.core.planning.holdings import Ranks, sources_of

_COLUMNS_MAX = 16
_ROWS_MAX = 12


def picture(source: WorkerLayout, destination: WorkerLayout) -> Iterator[str]:
    """Lines of text: for each layer group and destination rank, the source rank of each layer and head."""
    for group in destination.groups:
        yield ""
        yield f"{group.name}: the source rank of each cell, layers down, heads across{_tokens(group, source)}"
        for rank in destination.ranks:
            yield from _rank_lines(source, destination, group, rank)


def _tokens(group: LayerGroup, source: WorkerLayout) -> str:
    if group.per_sequence:
        return "; one block for a sequence"
    here = source.group(group.name).tokens_per_block
    window = f", the last {group.window_tokens} tokens" if group.window_tokens else ""
    return f"; blocks of {here} into blocks of {group.tokens_per_block}{window}"


def _rank_lines(source: WorkerLayout, destination: WorkerLayout, group: LayerGroup, rank: RankLayout) -> Iterator[str]:
    placement = rank.placement(group.name)
    if placement is None:
        return
    chosen = sources_of(group, source.ranks_of(0), destination, rank.rank, 0)
    heads = _shown(placement.heads, _COLUMNS_MAX)
    width = max(3, len(str(group.total_kv_heads)), len(str(len(source.ranks))))
    yield f"  rank {rank.rank}  head " + " ".join(f"{head:>{width}}" for head in heads)
    for first, last, row in _runs(group, placement.layers, chosen, heads):
        layers = f"layer {first}" if first == last else f"layers {first} to {last}"
        yield f"    {layers:<18}" + " ".join(f"{cell:>{width}}" for cell in row)


def _runs(
    group: LayerGroup, layers: Sequence[int], chosen: Ranks, heads: Sequence[int | str]
) -> Iterator[tuple[int, int, list[str]]]:
    """Layers that follow each other and are read alike, as one row; at most ``_ROWS_MAX`` rows."""
    rows: list[tuple[int, int, list[str]]] = []
    for layer in layers:
        cells = chosen[group.layers.index(layer)]
        row = [str(int(cells[head])) if isinstance(head, int) else "…" for head in heads]
        if rows and rows[-1][1] == layer - 1 and rows[-1][2] == row:
            rows[-1] = rows[-1][0], layer, row
        else:
            rows.append((layer, layer, row))
    yield from rows[:_ROWS_MAX]


def _shown(values: Sequence[int], count: int) -> list[int | str]:
    """The first and last of many."""
    if len(values) <= count:
        return list(values)
    half = count // 2
    return [*values[:half], "…", *values[-half:]]
