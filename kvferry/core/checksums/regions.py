"""Which bytes of a pool a digest takes in, and to which sum each of them is added."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvferry.core.blocks import BlockIds
from kvferry.core.checksums.formula import Words, cell_keys
from kvferry.core.errors import BlockError, InvalidArgument
from kvferry.core.layouts import BYTES_MAX, EXTENT_MAX, GroupPlacement, LayerGroup
from kvferry.core.planning.copies import Offsets
from kvferry.core.planning.tokens import TOKENS_MAX
from kvferry.core.reasons import Reason


@dataclass(frozen=True, slots=True)
class TokenRanges:
    """Ranges of a request's tokens, arrays of one length; each is added to one row of sums."""

    firsts: Offsets
    counts: Offsets
    rows: Offsets
    row_count: int

    @property
    def token_count(self) -> int:
        """Tokens, all ranges together."""
        return int(self.counts.sum())

    def hull(self, row: int) -> tuple[int, int]:
        """The first token of a row and the one after its last."""
        chosen = np.flatnonzero(self.rows == row)
        return int(self.firsts[chosen].min()), int((self.firsts + self.counts)[chosen].max())


@dataclass(frozen=True, slots=True)
class DigestRegion:
    """Runs of one layer group in a pool. Segments are tokens that are neighbours in one block; offsets are the pool's.

    Its sums are ``[row, cell]``.
    """

    bases: Offsets
    """Of each segment, where its first token is in a cell at offset 0."""
    tokens: Offsets
    """Of each segment, the number of that token in the request."""
    counts: Offsets
    rows: Offsets
    row_count: int
    cell_offsets: Offsets
    cell_keys: Words
    inner: int
    """So many neighbours among the cells differ in the head alone."""
    token_stride: int
    dim_stride: int
    run_elements: int
    element_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes that are summed."""
        return int(self.counts.sum()) * int(self.cell_offsets.size) * self.run_elements * self.element_bytes


def check_region(region: DigestRegion, window_bytes: int) -> None:
    """Refuse a region that leaves its window or its rows.

    Raises:
        InvalidArgument: names the field.
    """
    for name in ("token_stride", "dim_stride", "run_elements", "element_bytes"):
        value = int(getattr(region, name))
        if not 1 <= value <= BYTES_MAX:
            raise InvalidArgument.of_field(name, value, f"must be 1 to {BYTES_MAX}")
    lists = (region.bases, region.tokens, region.counts, region.rows)
    if len({part.size for part in lists}) > 1 or region.cell_keys.size != region.cell_offsets.size:
        raise InvalidArgument.of_field("bases", int(region.bases.size), "lists differ in length")
    if not region.bases.size or not region.cell_offsets.size:
        return
    for name, part, least, most in (
        ("bases", region.bases, 0, window_bytes - 1),
        ("tokens", region.tokens, 0, TOKENS_MAX),
        ("counts", region.counts, 1, EXTENT_MAX),
        ("rows", region.rows, 0, region.row_count - 1),
        ("cell_offsets", region.cell_offsets, 0, BYTES_MAX),
    ):
        if int(part.min()) < least or int(part.max()) > most:
            raise InvalidArgument.of_field(name, [int(part.min()), int(part.max())], f"must be {least} to {most}")
    run_end = int(region.cell_offsets.max()) + (region.run_elements - 1) * region.dim_stride + region.element_bytes
    longest = int(region.counts.max())
    # Python's own integers do not overflow; past this look, those of arrays do not either.
    if (longest - 1) * region.token_stride + run_end > window_bytes:
        raise InvalidArgument.of_field("counts", longest, "leaves the window")
    ends = region.bases + (region.counts - 1) * region.token_stride + run_end
    if int(ends.max()) > window_bytes:
        raise InvalidArgument.of_field("bases", int(region.bases[ends.argmax()]), "leaves the window")


def listed_tokens(field: str, group: LayerGroup, block_count: int, token_count: int) -> tuple[Offsets, Offsets]:
    """First token and number of tokens of each listed block, the last of which holds the last token.

    The first ones may have been left out. ``token_count`` 0 fills the blocks whole.

    Raises:
        BlockError: the list is longer than so many tokens need.
    """
    size = group.tokens_per_block
    total = total_tokens(group, block_count * size, token_count)
    first_listed = -(-total // size) - block_count
    if first_listed < 0:
        raise BlockError.of_field(
            f"{field}[{group.name}]",
            f"{block_count} blocks",
            f"{total} tokens take at most {-(-total // size)} blocks of {size}",
            reason=Reason.BLOCK_COUNT_MISMATCH,
        )
    firsts = (first_listed + np.arange(block_count, dtype=np.int64)) * size
    return firsts, np.minimum(size, total - firsts)


def total_tokens(group: LayerGroup, capacity: int, token_count: int) -> int:
    """Tokens of a request in a group: ``token_count``, where that is 0 ``capacity``, and 1 for state without tokens."""
    if group.per_sequence and token_count:
        return 1
    return token_count or capacity


def digest_region(
    group: LayerGroup,
    placement: GroupPlacement,
    blocks: BlockIds,
    total: int,
    ranges: TokenRanges,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> DigestRegion:
    """What ranges of a request's ``total`` tokens are in its ``blocks``, the last of which holds the last token.

    ``layers`` and ``heads`` are positions in the placement; None takes all.
    """
    segments = _segments(group, blocks.size, total, ranges)
    index, inside, tokens, counts, rows = segments
    strides = placement.strides
    taken_layers = np.arange(len(placement.layers)) if layers is None else np.asarray(layers, dtype=np.int64)
    taken_heads = np.arange(len(placement.heads)) if heads is None else np.asarray(heads, dtype=np.int64)
    offsets = (
        taken_layers.reshape(-1, 1, 1) * strides.layer
        + np.arange(group.kv_factor).reshape(1, -1, 1) * strides.kv
        + taken_heads.reshape(1, 1, -1) * strides.head
    )
    return DigestRegion(
        bases=placement.base_bytes + blocks[index] * strides.block + inside * strides.token,
        tokens=tokens,
        counts=counts,
        rows=rows,
        row_count=ranges.row_count,
        cell_offsets=offsets.reshape(-1).astype(np.int64),
        cell_keys=cell_keys(
            [placement.layers[layer] for layer in taken_layers.tolist()],
            group.kv_factor,
            [placement.heads[head] for head in taken_heads.tolist()],
        ),
        inner=max(int(taken_heads.size), 1),
        token_stride=strides.token,
        dim_stride=strides.dim,
        run_elements=group.head_dim,
        element_bytes=group.element_type.size_bytes,
    )


def _segments(group: LayerGroup, listed: int, total: int, ranges: TokenRanges) -> tuple[Offsets, ...]:
    """Ranges cut at blocks: index of the block in its list, position in it, token, count and row of each segment."""
    size = group.tokens_per_block
    first_listed = -(-total // size) - listed
    stops = ranges.firsts + ranges.counts
    first_blocks = ranges.firsts // size
    spans = np.where(ranges.counts > 0, (stops - 1) // size - first_blocks + 1, 0)
    begins = np.cumsum(spans) - spans
    order = np.arange(int(spans.sum()), dtype=np.int64)
    block = np.repeat(first_blocks - begins, spans) + order
    tokens = np.maximum(np.repeat(ranges.firsts, spans), block * size)
    ends = np.minimum(np.repeat(stops, spans), (block + 1) * size)
    return block - first_listed, tokens - block * size, tokens, ends - tokens, np.repeat(ranges.rows, spans)
