"""Which tokens of a request are copied, and how they fall into the blocks of both sides."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from kvferry.core.blocks import BlockIds, ascending
from kvferry.core.errors import BlockError, InvalidArgument
from kvferry.core.layouts import LayerGroup
from kvferry.core.planning.copies import Offsets
from kvferry.core.reasons import Reason

TOKENS_MAX = 1 << 40
_FEW = 64
"""So few segments are counted sooner one by one."""


@dataclass(frozen=True, slots=True)
class TokenRange:
    """The tokens to copy: from ``start``, those before being at the destination already, to before ``stop``.

    The source holds ``total`` tokens; the destination will hold ``stop``. With a ``span`` only the tokens from its
    first to before its second position are copied now, and state of the whole sequence with the last of them.
    """

    start: int
    stop: int
    total: int
    span: tuple[int, int] | None = None

    @classmethod
    def whole(cls, total: int) -> "TokenRange":
        """All tokens of a request."""
        return cls(0, total, total)

    def check(self) -> None:
        """Refuse a range that is none.

        Raises:
            InvalidArgument: names the field.
        """
        for field, value, least, most in (
            ("tokens.total", self.total, 1, TOKENS_MAX),
            ("tokens.stop", self.stop, 1, self.total),
            ("tokens.start", self.start, 0, self.stop),
        ):
            if not least <= value <= most:
                raise InvalidArgument.of_field(field, value, f"must be {least} to {most}")
        if self.span is not None and not self.start <= self.span[0] < self.span[1] <= self.stop:
            raise InvalidArgument.of_field("tokens.span", self.span, f"must lie in {self.start} to {self.stop}")


@dataclass(frozen=True, slots=True)
class Segments:
    """Tokens that are neighbours in one block of each side; arrays of one length, ordered by block of one side."""

    source_blocks: Offsets
    source_tokens: Offsets
    """Of each segment, the position in its block of its first token."""
    destination_blocks: Offsets
    destination_tokens: Offsets
    counts: Offsets
    by_destination: bool
    """Which side's blocks they are ordered by: that with the smaller blocks, most of whose blocks are one segment."""
    whole_tokens: int = 0
    """Of every segment, where each is a whole block of both sides; else 0."""

    def __getitem__(self, part: slice | Offsets) -> "Segments":
        return Segments(
            self.source_blocks[part],
            self.source_tokens[part],
            self.destination_blocks[part],
            self.destination_tokens[part],
            self.counts[part],
            self.by_destination,
            self.whole_tokens,
        )

    def kinds(self) -> dict[int, int]:
        """How many segments there are of each number of tokens."""
        if self.whole_tokens and self.counts.size:
            return {self.whole_tokens: int(self.counts.size)}
        if self.counts.size <= _FEW:
            return dict(Counter(self.counts.tolist()))
        first = int(self.counts[0])
        if bool((self.counts == first).all()):
            return {first: int(self.counts.size)}
        kinds, times = np.unique(self.counts, return_counts=True)
        return dict(zip(kinds.tolist(), times.tolist(), strict=True))


def segments_of(
    source: LayerGroup, destination: LayerGroup, held: BlockIds, wanted: BlockIds, tokens: TokenRange | None
) -> Segments:
    """Cut the tokens of a group at the blocks of both sides. ``tokens`` None copies the source's blocks whole.

    Raises:
        BlockError: reason BLOCK_COUNT_MISMATCH, a list does not hold the tokens.
        InvalidArgument: the source's window no longer holds the tokens.
    """
    here, there = source.tokens_per_block, destination.tokens_per_block
    if here == there and _is_all(source, destination, held, wanted, tokens):
        return _whole_blocks(held, wanted, 0, 0, held.size * here, here)
    start, stop, total = tokens_read(source, destination, held.size, tokens)
    first_held = _first_listed("source_blocks", source, held.size, start, total)
    first_wanted = _first_listed("destination_blocks", destination, wanted.size, start, stop)
    if tokens is not None and tokens.span is not None:
        start, stop = _spanned(source, tokens.span, start, stop, ends=tokens.span[1] == tokens.stop)
    if here == there and start < stop and not start % here and not stop % here:
        return _whole_blocks(held, wanted, start // here - first_held, start // here - first_wanted, stop - start, here)
    cuts = _cuts(start, stop, here, there)
    begins, counts = cuts[:-1], np.diff(cuts)
    held_index, wanted_index = begins // here, begins // there
    segments = Segments(
        source_blocks=held[held_index - first_held],
        source_tokens=begins - held_index * here,
        destination_blocks=wanted[wanted_index - first_wanted],
        destination_tokens=begins - wanted_index * there,
        counts=counts,
        by_destination=there < here,
    )
    if counts.size == 1:
        return segments
    key = segments.destination_blocks if segments.by_destination else segments.source_blocks
    if bool((key[1:] >= key[:-1]).all()):
        return segments
    # Segments of one block keep their order. A key of its own for each makes the fast, unstable sort do that.
    return segments[np.argsort(key * key.size + np.arange(key.size))]


def _is_all(
    source: LayerGroup, destination: LayerGroup, held: BlockIds, wanted: BlockIds, tokens: TokenRange | None
) -> bool:
    """Whether whole blocks are copied, and all that are listed on either side, their sizes being equal: nothing else
    has to be worked out then.
    """
    if not held.size or held.size != wanted.size or source.per_sequence:
        return False
    if tokens is None:
        return True
    no_windows = not source.window_tokens and not destination.window_tokens
    return (
        no_windows
        and not tokens.start
        and tokens.span is None
        and tokens.stop == tokens.total == (held.size * source.tokens_per_block)
    )


def tokens_read(
    source: LayerGroup, destination: LayerGroup, held_count: int, tokens: TokenRange | None
) -> tuple[int, int, int]:
    """The first token of a group that is copied, the one after the last, and how many the source holds.

    Raises:
        InvalidArgument: as :func:`segments_of`.
    """
    if tokens is None:
        held_tokens = held_count * source.tokens_per_block
        return 0, held_tokens, held_tokens
    if source.per_sequence:
        if tokens.stop != tokens.total:
            why = f"group {source.name!r} is state after all {tokens.total} tokens"
            raise InvalidArgument.of_field("tokens.stop", tokens.stop, why)
        return 0, 1, 1
    return _clipped(source, destination, tokens), tokens.stop, tokens.total


def _whole_blocks(
    held: BlockIds, wanted: BlockIds, held_before: int, wanted_before: int, token_count: int, each: int
) -> Segments:
    """Segments that are whole blocks on both sides, the most frequent case: nothing has to be cut."""
    count = token_count // each
    source = held[held_before : held_before + count]
    destination = wanted[wanted_before : wanted_before + count]
    if np.count_nonzero(source[1:] < source[:-1]):
        order = ascending(source)
        source, destination = source[order], destination[order]
    nothing = np.zeros(count, dtype=np.int64)
    counts = np.empty(count, dtype=np.int64)
    counts.fill(each)
    return Segments(source, nothing, destination, nothing, counts, by_destination=False, whole_tokens=each)


def check_listed(field: str, group: LayerGroup, block_count: int, token_count: int, first_token: int = 0) -> None:
    """Refuse a number of listed blocks that does not hold the tokens from ``first_token`` to ``token_count``.

    Raises:
        BlockError: reason BLOCK_COUNT_MISMATCH.
    """
    if group.per_sequence:
        first_token, token_count = 0, 1
    elif group.window_tokens:
        first_token = min(max(first_token, token_count - group.window_tokens), token_count)
    _first_listed(field, group, block_count, first_token, token_count)


def _clipped(source: LayerGroup, destination: LayerGroup, tokens: TokenRange) -> int:
    """The first token to copy, both windows heeded."""
    start = tokens.start
    if destination.window_tokens:
        start = min(max(start, tokens.stop - destination.window_tokens), tokens.stop)
    kept = max(tokens.total - source.window_tokens, 0) if source.window_tokens else 0
    if start < min(kept, tokens.stop):
        why = f"the source's window of group {source.name!r} begins at token {kept}, token {start} is needed"
        raise InvalidArgument.of_field("tokens.stop", tokens.stop, why)
    return start


def _spanned(group: LayerGroup, span: tuple[int, int], start: int, stop: int, *, ends: bool) -> tuple[int, int]:
    """The tokens of a group that are copied with a span; ``ends``: no token comes after it."""
    if group.per_sequence:
        return (start, stop) if ends else (start, start)
    return max(start, span[0]), min(stop, span[1])


def _first_listed(field: str, group: LayerGroup, listed: int, start: int, stop: int) -> int:
    """The index, among a request's blocks, of the first that is listed: the last listed holds the last token."""
    total = -(-stop // group.tokens_per_block)
    needed = total - start // group.tokens_per_block if start < stop else 0
    if not needed <= listed <= total:
        least = "" if needed == total else f"{needed} to "
        raise BlockError.of_field(
            f"{field}[{group.name}]",
            f"{listed} blocks",
            f"tokens {start} to {stop} take {least}{total} blocks of {group.tokens_per_block}",
            reason=Reason.BLOCK_COUNT_MISMATCH,
        )
    return total - listed


def _cuts(start: int, stop: int, here: int, there: int) -> Offsets:
    """Token positions from ``start`` to ``stop`` where a block of either side begins."""
    if start >= stop:
        return np.array([start], dtype=np.int64)
    small, large = min(here, there), max(here, there)
    if all(start // size == (stop - 1) // size for size in (small, large)):
        return np.array([start, stop], dtype=np.int64)
    inside = np.arange((start // small + 1) * small, stop, small, dtype=np.int64)
    if large % small:
        others = np.arange((start // large + 1) * large, stop, large, dtype=np.int64)
        inside = np.union1d(inside, others)
    return np.concatenate(([start], inside, [stop])).astype(np.int64, copy=False)
