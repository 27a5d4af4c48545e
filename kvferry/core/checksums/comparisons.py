"""What a destination rank compares with a source rank's sums. Pure."""

from dataclasses import dataclass

import numpy as np

from kvferry.core.blocks import BlockIds
from kvferry.core.checksums.formula import Words
from kvferry.core.checksums.regions import DigestRegion, TokenRanges, digest_region
from kvferry.core.checksums.sums import GroupSums
from kvferry.core.errors import ChecksumsAbsent, InvalidArgument
from kvferry.core.layouts import GroupPlacement
from kvferry.core.planning.holdings import positions
from kvferry.core.planning.planner import PairPlan
from kvferry.core.planning.shares import boxes
from kvferry.core.planning.tokens import TokenRange, tokens_read


@dataclass(frozen=True, slots=True)
class Comparison:
    """Layers times heads of one layer group that came from one source rank, and the sums that they must have."""

    source_rank: int
    group: str
    region: DigestRegion
    ranges: TokenRanges
    layers: tuple[int, ...]
    kv_factor: int
    heads: tuple[int, ...]
    expected: Words
    """``[row, cell]``"""

    def difference(self, found: Words) -> str:
        """What differs, for people; empty if nothing does."""
        rows, cells = np.nonzero(found != self.expected)
        if not rows.size:
            return ""
        shape = len(self.layers), self.kv_factor, len(self.heads)
        layer, kv, head = (int(index) for index in np.unravel_index(int(cells[0]), shape))
        part = ("K", "V")[kv] if self.kv_factor > 1 else "KV"
        first, stop = self.ranges.hull(int(rows[0]))
        return (
            f"group {self.group!r}, layer {self.layers[layer]}, {part}, head {self.heads[head]}, "
            f"tokens {first} to {stop}, from source rank {self.source_rank} "
            f"({rows.size} of {self.expected.size} sums differ)"
        )


def comparisons_of(
    pair: PairPlan,
    source_rank: int,
    group_name: str,
    sums: GroupSums,
    blocks: BlockIds,
    held_count: int,
    tokens: TokenRange | None,
    *,
    every: int,
) -> list[Comparison]:
    """What to compare of a layer group that a request reads from a source rank; ``blocks`` are the destination's.

    ``held_count`` is the number of blocks that the source lists.

    Raises:
        InvalidArgument: the sums are not of tokens that are read, or are too few or too many.
        ChecksumsAbsent: ``every`` is 1, and the sums are not of all tokens that are read.
    """
    source, destination = pair.source.group(group_name), pair.destination.group(group_name)
    start, stop, _ = tokens_read(source, destination, held_count, tokens)
    _check_ranges(group_name, sums.ranges, start, stop)
    if every == 1 and sums.ranges.token_count != stop - start:
        why = f"the sums are of {sums.ranges.token_count} of {stop - start} tokens of group {group_name!r}"
        raise ChecksumsAbsent.of_field("checksums", group_name, why)
    held = pair.source.ranks[source_rank].placement(group_name)
    wanted = pair.destination.ranks[pair.rank].placement(group_name)
    if held is None or wanted is None or not sums.ranges.row_count:
        return []
    shape = sums.ranges.row_count, len(held.layers), source.kv_factor, len(held.heads)
    if sums.sums.shape != (shape[0], shape[1] * shape[2] * shape[3]):
        raise InvalidArgument.of_field("checksums.sums", sums.sums.shape, f"must be {shape}")
    whole = sums.sums.reshape(shape)
    found = []
    for layer_index, head_index in boxes(pair.sources_of(group_name) == source_rank):
        layers = [destination.layers[index] for index in layer_index.tolist()]
        heads = head_index.tolist()
        layers_there, heads_there = positions(held.layers, layers), positions(held.heads, heads)
        here = _placed(wanted, layers, heads)
        found.append(
            Comparison(
                source_rank=source_rank,
                group=group_name,
                region=digest_region(destination, wanted, blocks, stop, sums.ranges, *here),
                ranges=sums.ranges,
                layers=tuple(layers),
                kv_factor=source.kv_factor,
                heads=tuple(heads),
                expected=whole[:, layers_there][:, :, :, heads_there].reshape(shape[0], -1),
            )
        )
    return found


def _placed(placement: GroupPlacement, layers: list[int], heads: list[int]) -> tuple[list[int], list[int]]:
    return positions(placement.layers, layers).tolist(), positions(placement.heads, heads).tolist()


def _check_ranges(group: str, ranges: TokenRanges, start: int, stop: int) -> None:
    stops = ranges.firsts + ranges.counts
    if not ranges.firsts.size == ranges.counts.size == ranges.rows.size:
        raise InvalidArgument.of_field("checksums.counts", int(ranges.counts.size), "lists differ in length")
    if not ranges.firsts.size:
        return
    if (ranges.counts <= 0).any() or (ranges.firsts[1:] < stops[:-1]).any():
        raise InvalidArgument.of_field("checksums.firsts", group, "ranges must ascend and not be empty")
    if ranges.firsts[0] < start or stops[-1] > stop:
        why = f"tokens {start} to {stop} are read"
        raise InvalidArgument.of_field("checksums.firsts", f"{ranges.firsts[0]} to {stops[-1]}", why)
    if ranges.rows.min() < 0 or ranges.rows.max() >= ranges.row_count:
        raise InvalidArgument.of_field("checksums.rows", int(ranges.rows.max()), f"there are {ranges.row_count} rows")
