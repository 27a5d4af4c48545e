"""KV carried from one worker to another, one row of numbers at a time, from nothing but the meaning of a layout."""

from collections.abc import Iterator, Mapping, Sequence

import torch

from kvferry.core.layouts import GroupPlacement, LayerGroup, WorkerLayout

Pools = Sequence[torch.Tensor]
Tables = Mapping[str, Sequence[int]]


def copy_tokens(
    source: tuple[WorkerLayout, Pools, Tables], destination: tuple[WorkerLayout, Pools, Tables], tokens: int
) -> int:
    """Give every destination rank what it holds of the first ``tokens`` tokens, of a window only its last ones.

    Of ranks that hold the same, the last one is read. Returns the bytes that were written.
    """
    read_layout, read_pools, read_tables = source
    layout, pools, tables = destination
    written = 0
    for rank, pool in zip(layout.ranks, pools, strict=True):
        for placement in rank.placements:
            name = placement.group
            group, read_group = layout.group(name), read_layout.group(name)
            oldest = max(tokens - group.window_tokens, 0) if group.window_tokens else 0
            for layer, kv, head in _rows(group, placement):
                holder, held = _holder(read_layout, name, layer, head)
                for token in range(oldest, tokens):
                    read = _row(read_group, held, read_tables[name], (layer, kv, head, token))
                    write = _row(group, placement, tables[name], (layer, kv, head, token))
                    pool[write] = read_pools[holder][read]
                    written += write.numel()
    return written


def _rows(group: LayerGroup, placement: GroupPlacement) -> Iterator[tuple[int, int, int]]:
    for layer in placement.layers:
        for kv in range(group.kv_factor):
            for head in placement.heads:
                yield layer, kv, head


def _holder(layout: WorkerLayout, group: str, layer: int, head: int) -> tuple[int, GroupPlacement]:
    for rank in reversed(layout.ranks):
        for placement in rank.placements:
            if placement.group == group and layer in placement.layers and head in placement.heads:
                return rank.rank, placement
    raise AssertionError(f"nobody holds layer {layer}, head {head} of {group}")


def _row(
    group: LayerGroup, placement: GroupPlacement, table: Sequence[int], at: tuple[int, int, int, int]
) -> torch.Tensor:
    """Positions in the pool of all bytes that one token has for a model's layer, kv index and head."""
    layer, kv, head, token = at
    strides = placement.strides
    start = (
        placement.base_bytes
        + table[token // group.tokens_per_block] * strides.block
        + placement.layers.index(layer) * strides.layer
        + kv * strides.kv
        + placement.heads.index(head) * strides.head
        + token % group.tokens_per_block * strides.token
    )
    numbers = torch.arange(group.head_dim) * strides.dim
    return (start + numbers[:, None] + torch.arange(group.element_type.size_bytes)).flatten()
