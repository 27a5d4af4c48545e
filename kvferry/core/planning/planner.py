"""Plans: which bytes a destination rank reads from which source rank.

What depends on the two layouts alone is worked out once, in :class:`PairPlan`; a request adds its block lists and its
tokens, and gets its copies from a few additions of arrays.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kvferry.core.blocks import BlockLists, check_ids, require_few_blocks
from kvferry.core.errors import InvalidArgument, LayoutMismatch
from kvferry.core.layouts import WorkerLayout
from kvferry.core.pairing import mismatches
from kvferry.core.planning.copies import NOTHING, CopyPlan, StridedCopy, concatenated, joined
from kvferry.core.planning.holdings import Ranks, sources_of
from kvferry.core.planning.parts import Part, parts_of, strided, touch
from kvferry.core.planning.shares import Share, shares_of
from kvferry.core.planning.templates import Template, folded, piece_count, template_of
from kvferry.core.planning.tokens import Segments, TokenRange, segments_of

_TEMPLATES_KEPT_MAX = 256
_TEMPLATE_PIECES_KEPT_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class PlanSize:
    """What a plan will come to: ``total_bytes`` exactly, ``pieces_max`` before segments are joined."""

    total_bytes: int
    pieces_max: int


class PairPlan:
    """What one destination rank reads from a source worker, whatever the request.

    Requests may be made on one thread while plans are written on another, but no two plans at a time.
    """

    def __init__(
        self,
        source: WorkerLayout,
        destination: WorkerLayout,
        rank: int,
        *,
        source_data_parallel_rank: int = 0,
        replica_shift: int = 0,
    ) -> None:
        """Work out the shares of destination rank ``rank``. Both layouts are valid.

        Where several source ranks hold the same, ``replica_shift`` decides with which of them the first reader begins.

        Raises:
            LayoutMismatch: the workers cannot be paired; the message says why.
            InvalidArgument: there is no such rank.
        """
        _require_pairable(source, destination)
        for field, value, count in (
            ("rank", rank, len(destination.ranks)),
            ("source_data_parallel_rank", source_data_parallel_rank, source.data_parallel_size),
        ):
            if not 0 <= value < count:
                raise InvalidArgument.of_field(field, value, f"must be 0 to {count - 1}")
        self.source = source
        self.destination = destination
        self.rank = rank
        self._shards = source_data_parallel_rank, destination.ranks[rank].data_parallel_rank
        self._replica_shift = replica_shift
        self._sources: dict[str, Ranks] = {}
        self._shares: dict[tuple[int, str], list[Share]] = {}
        for share in shares_of(source, destination, rank, source_data_parallel_rank, replica_shift):
            self._shares.setdefault((share.source_rank, share.group), []).append(share)
        self._templates: dict[tuple[Share, int, bool], Template] = {}
        self._segment_sizes: dict[tuple[int, str, int], PlanSize] = {}
        held = {group.name: group for group in source.groups}
        self._groups = {wanted.name: (held[wanted.name], wanted) for wanted in destination.groups}
        self._all_groups = set(self._groups) if set(self._groups) == set(held) else set()
        """Of both workers; empty if one of them has a group that the other has not."""

    @cached_property
    def source_ranks(self) -> tuple[int, ...]:
        """The source ranks that this rank reads from, ascending."""
        return tuple(sorted({number for number, _ in self._shares}))

    def sources_of(self, group: str) -> Ranks:
        """The source rank that each cell of a group is read from, ``[layer, head]``; -1 where this rank holds none."""
        if group not in self._sources:
            ranks = self.source.ranks_of(self._shards[0])
            wanted = self.destination.group(group)
            self._sources[group] = sources_of(wanted, ranks, self.destination, self.rank, self._replica_shift)
        return self._sources[group]

    def request(
        self, source_blocks: BlockLists, destination_blocks: BlockLists, tokens: TokenRange | None = None
    ) -> "RequestPlan":
        """What a request copies. ``tokens`` None copies the source's blocks whole.

        Raises:
            InvalidArgument: a group is unknown or listed on one side only; or the tokens are no range of the request's.
            BlockError: an id is out of range or listed twice, or a list does not hold the tokens.
        """
        self._check_groups(source_blocks, destination_blocks)
        for field, blocks, layout, shard in (
            ("source_blocks", source_blocks, self.source, self._shards[0]),
            ("destination_blocks", destination_blocks, self.destination, self._shards[1]),
        ):
            for name, ids in blocks.items():
                check_ids(name, ids, layout.block_count(name, shard), field)
        return self.request_checked(source_blocks, destination_blocks, tokens)

    def request_checked(
        self, source_blocks: BlockLists, destination_blocks: BlockLists, tokens: TokenRange | None = None
    ) -> "RequestPlan":
        """As :meth:`request`, for lists of ids that were checked one by one; groups and tokens are checked here.

        Raises:
            InvalidArgument, BlockError: as :meth:`request`.
        """
        if tokens is not None:
            tokens.check()
        self._check_groups(source_blocks, destination_blocks)
        segments = {
            name: segments_of(*self._groups[name], held, destination_blocks[name], tokens)
            for name, held in source_blocks.items()
        }
        return RequestPlan(self, segments)

    def shares(self, source_rank: int, group: str) -> list[Share]:
        """What this rank reads of a group from a source rank."""
        return self._shares.get((source_rank, group), [])

    def segment_size(self, source_rank: int, group: str, token_count: int) -> PlanSize:
        """What a segment of so many tokens of a group comes to from a source rank."""
        key = (source_rank, group, token_count)
        size = self._segment_sizes.get(key)
        if size is None:
            shares = self.shares(source_rank, group)
            size = PlanSize(
                token_count * sum(share.token_bytes for share in shares),
                sum(piece_count(folded(share, token_count)[0]) for share in shares),
            )
            if len(self._segment_sizes) >= _TEMPLATES_KEPT_MAX:
                self._segment_sizes.pop(next(iter(self._segment_sizes)))
            self._segment_sizes[key] = size
        return size

    def template(self, share: Share, token_count: int, *, by_destination: bool) -> Template:
        """The template of a share; small ones are kept."""
        key = (share, token_count, by_destination)
        template = self._templates.get(key)
        if template is None:
            template = template_of(share, token_count, by_destination=by_destination)
            if template.piece_count <= _TEMPLATE_PIECES_KEPT_MAX:
                if len(self._templates) >= _TEMPLATES_KEPT_MAX:
                    self._templates.pop(next(iter(self._templates)))
                self._templates[key] = template
        return template

    def _check_groups(self, source_blocks: BlockLists, destination_blocks: BlockLists) -> None:
        if source_blocks.keys() == destination_blocks.keys() == self._all_groups:
            # All that there is to check then: groups that move together are both listed.
            for field, blocks in ("source_blocks", source_blocks), ("destination_blocks", destination_blocks):
                require_few_blocks(field, [ids.size for ids in blocks.values()])
            return
        for field, blocks, layout in (
            ("source_blocks", source_blocks, self.source),
            ("destination_blocks", destination_blocks, self.destination),
        ):
            known = {group.name for group in layout.groups}
            for name in blocks:
                if name not in known:
                    raise InvalidArgument.of_field(f"{field}.group", name, f"the layout has {sorted(known)}")
            for group in layout.groups:
                if group.scales_of and (group.name in blocks) != (group.scales_of in blocks):
                    why = f"groups {group.scales_of!r} and {group.name!r}, its scales, move together"
                    raise InvalidArgument.of_field(f"{field}.group", sorted(blocks), why)
            require_few_blocks(field, [ids.size for ids in blocks.values()])
        if source_blocks.keys() != destination_blocks.keys():
            raise InvalidArgument.of_field(
                "destination_blocks.group", sorted(destination_blocks), f"the source lists {sorted(source_blocks)}"
            )


class RequestPlan:
    """The copies of one request, for each source rank."""

    def __init__(self, pair: PairPlan, segments: Mapping[str, Segments]) -> None:
        self._pair = pair
        self._segments = segments

    @property
    def source_ranks(self) -> tuple[int, ...]:
        """The source ranks that something is read from."""
        return tuple(self.sizes)

    @cached_property
    def sizes(self) -> dict[int, PlanSize]:
        """What comes from each source rank that something is read from, without making the plans."""
        kinds = {name: segments.kinds() for name, segments in self._segments.items()}
        sizes: dict[int, PlanSize] = {}
        for rank in self._pair.source_ranks:
            size = self._size(rank, kinds)
            if size.total_bytes:
                sizes[rank] = size
        return sizes

    def _size(self, source_rank: int, kinds: Mapping[str, Mapping[int, int]]) -> PlanSize:
        total_bytes = pieces = 0
        for name, times in kinds.items():
            for count, repeats in times.items():
                segment = self._pair.segment_size(source_rank, name, count)
                total_bytes += repeats * segment.total_bytes
                pieces += repeats * segment.pieces_max
        return PlanSize(total_bytes, pieces)

    def row_count(self, source_rank: int) -> int:
        """Runs if none were joined: one for each layer, K or V, head and token."""
        rows = 0
        for name, segments in self._segments.items():
            tokens = int(segments.counts.sum())
            for share in self._pair.shares(source_rank, name):
                rows += tokens * (share.token_bytes // (share.axes[3].length * share.element_bytes))
        return rows

    def plan(self, source_rank: int) -> CopyPlan:
        """All that comes from a source rank, neighbours joined wherever they touch on both sides.

        Runs of different layer groups are not joined.
        """
        return self._written(source_rank, self._segments)

    def plans(self) -> dict[int, CopyPlan]:
        """The plan for each source rank that something is read from."""
        return {rank: self.plan(rank) for rank in self.source_ranks}

    def chunks(self, source_rank: int, pieces_max: int) -> Iterator[CopyPlan]:
        """The same copies a part at a time, each of about ``pieces_max`` pieces at most; at least one segment each."""
        for name, segments in self._segments.items():
            counts = segments.kinds()
            each = 0
            for share in self._pair.shares(source_rank, name):
                each += max((piece_count(folded(share, count)[0]) for count in counts), default=0)
            if not each:
                continue
            size, step = int(segments.counts.size), max(pieces_max // each, 1)
            for first in range(0, size, step):
                part = segments if step >= size else segments[first : first + step]
                yield self._written(source_rank, {name: part})

    def strided(self, source_rank: int) -> tuple[StridedCopy, ...]:
        """The same copies as regions: few objects, whose bases are arrays over the blocks."""
        found: list[StridedCopy] = []
        for name, segments in self._segments.items():
            for part in self._parts(source_rank, name, segments):
                found += strided(part)
        return tuple(found)

    def _written(self, source_rank: int, segments_by_group: Mapping[str, Segments]) -> CopyPlan:
        groups = [
            (segments.by_destination, list(self._parts(source_rank, name, segments)))
            for name, segments in segments_by_group.items()
        ]
        count = sum(part.piece_count for _, parts in groups for part in parts)
        if not count:
            return NOTHING
        # One piece of memory: large enough for huge pages sooner than three.
        whole = CopyPlan(*np.empty((3, count), dtype=np.int64))
        plans, first = [], 0
        for by_destination, parts in groups:
            size = sum(part.piece_count for part in parts)
            plans.append(_group_plan(parts, _sliced(whole, first, first + size), by_destination=by_destination))
            first += size
        return whole if sum(plan.piece_count for plan in plans) == count else concatenated(plans)

    def _parts(self, source_rank: int, name: str, segments: Segments) -> Iterator[Part]:
        shares = self._pair.shares(source_rank, name)
        counts = segments.kinds() if shares else ()
        for share in shares if counts else ():
            templates = [
                (count, self._pair.template(share, count, by_destination=segments.by_destination)) for count in counts
            ]
            yield from parts_of(share, segments, templates)


def _group_plan(parts: list[Part], plan: CopyPlan, *, by_destination: bool) -> CopyPlan:
    """Write the parts of a layer group into ``plan``; returns it, or a shorter one if pieces could be joined."""
    written, first, tidy = [], 0, True
    for part in parts:
        view = _sliced(plan, first, first + part.piece_count)
        part.write(view)
        ascends, may_touch = part.order()
        tidy = tidy and ascends and not may_touch
        written.append(view)
        first += part.piece_count
    if tidy and not touch(written, by_destination=by_destination):
        return plan
    return joined(plan, by_destination=by_destination)


def _sliced(plan: CopyPlan, first: int, stop: int) -> CopyPlan:
    part = slice(first, stop)
    return CopyPlan(plan.source_offsets[part], plan.destination_offsets[part], plan.lengths[part])


def _require_pairable(source: WorkerLayout, destination: WorkerLayout) -> None:
    found = mismatches(source, destination)
    if found:
        metadata = {"field": found[0].field, "source": found[0].source, "destination": found[0].destination}
        raise LayoutMismatch("; ".join(map(str, found)), metadata=metadata)
