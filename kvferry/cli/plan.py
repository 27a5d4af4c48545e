"""``kvferry plan``: what a transfer between two layouts would copy, and why not, without a cluster."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format
from rich.markup import escape

from kvferry.cli.figures import size_text
from kvferry.cli.picture import picture
from kvferry.cli.terminal import console, print_json, table
from kvferry.core.blocks import BlockLists
from kvferry.core.errors import ConfigInvalid, LayoutMismatch
from kvferry.core.layouts import WorkerLayout, validate_layout
from kvferry.core.pairing import mismatches
from kvferry.core.planning.planner import PairPlan, RequestPlan
from kvferry.core.planning.tokens import TokenRange
from kvferry.layout.v1 import layout_pb2
from kvferry.rpc.layouts import layout_from_wire

LAYOUT_BYTES_MAX = 16 << 20


async def plan(
    source_path: Path, destination_path: Path, tokens: TokenRange, *, scattered: bool, json_output: bool
) -> None:
    """Show the verdict on two layouts and, if they can be paired, what every destination rank reads.

    ``scattered`` takes blocks from anywhere in the pools, otherwise they follow each other.

    Raises:
        ConfigInvalid: a file cannot be read, or is no layout.
        LayoutMismatch: the two cannot be paired; all reasons are shown first.
    """
    source, destination = _read_layout("SRC", source_path), _read_layout("DST", destination_path)
    found = mismatches(source, destination)
    if json_output:
        rows = [] if found else list(_ranks(source, destination, tokens, scattered=scattered))
        named = [{"field": m.field, "source": m.source, "destination": m.destination} for m in found]
        print_json({"compatible": not found, "mismatches": named, "tokens": tokens.total, "ranks": rows})
    elif found:
        columns = ("field", "source", "destination")
        reasons = [tuple(map(escape, (m.field, m.source, m.destination))) for m in found]
        console().print(table("cannot be paired", columns, reasons))
    else:
        _show(source, destination, list(_ranks(source, destination, tokens, scattered=scattered)))
    if found:
        raise LayoutMismatch("the two cannot be paired", metadata={"field": found[0].field})


def _show(source: WorkerLayout, destination: WorkerLayout, ranks: list[dict[str, Any]]) -> None:
    out = console()
    out.print(f"{source.model}: {len(source.ranks)} ranks to {len(destination.ranks)}: can be paired")
    rows = [
        (
            str(rank["rank"]),
            str(part["source_rank"]),
            size_text(part["total_bytes"]),
            f"{part['row_count']:,}",
            f"{part['piece_count']:,}",
            size_text(round(part["total_bytes"] / max(part["piece_count"], 1))),
        )
        for rank in ranks
        for part in rank["sources"]
    ]
    columns = ("rank", "reads from", "bytes", "rows", "pieces", "mean piece")
    out.print(table("what each rank reads", columns, rows, right=4))
    for line in picture(source, destination):
        out.print(line, markup=False, soft_wrap=True)


def _ranks(
    source: WorkerLayout, destination: WorkerLayout, tokens: TokenRange, *, scattered: bool
) -> Iterator[dict[str, Any]]:
    lists = (
        _some_blocks(source, tokens.total, seed=1 if scattered else None),
        _some_blocks(destination, tokens.stop, seed=2 if scattered else None),
    )
    for rank in destination.ranks:
        request = PairPlan(source, destination, rank.rank).request(lists[0], lists[1], tokens)
        parts = [_part(request, number) for number in request.source_ranks]
        pieces, size = (sum(part[name] for part in parts) for name in ("piece_count", "total_bytes"))
        yield {
            "rank": rank.rank,
            "data_parallel_rank": rank.data_parallel_rank,
            "total_bytes": size,
            "piece_count": pieces,
            "mean_piece_bytes": round(size / max(pieces, 1), 1),
            "sources": parts,
        }


def _part(request: RequestPlan, number: int) -> dict[str, int]:
    made = request.plan(number)
    return {
        "source_rank": number,
        "total_bytes": made.total_bytes,
        "row_count": request.row_count(number),
        "piece_count": made.piece_count,
    }


def _some_blocks(layout: WorkerLayout, tokens: int, *, seed: int | None) -> BlockLists:
    """The first blocks of each group's pool, or any, as many as the tokens take.

    Raises:
        ConfigInvalid: the pool has not so many.
    """
    lists = {}
    for group in layout.groups:
        count = 1 if group.per_sequence else -(-tokens // group.tokens_per_block)
        room = layout.block_count(group.name)
        if count > room and not group.window_tokens:
            raise ConfigInvalid.of_field(
                "tokens", tokens, f"take {count} blocks of group {group.name!r}, it has {room}"
            )
        # Blocks before a window are given back; only as many as there may be are listed.
        ids = np.arange(room, dtype=np.int64)
        if seed is not None:
            np.random.default_rng(seed).shuffle(ids)
        lists[group.name] = ids[:count]
    return lists


def _read_layout(field: str, path: Path) -> WorkerLayout:
    try:
        if path.stat().st_size > LAYOUT_BYTES_MAX:
            raise ConfigInvalid.of_field(field, str(path), f"has more than {LAYOUT_BYTES_MAX} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid.of_field(field, str(path), f"cannot be read: {error}") from error
    try:
        wire = json_format.Parse(text, layout_pb2.WorkerLayout())
    except json_format.ParseError as error:
        why = f"is no kvferry.layout.v1.WorkerLayout in JSON: {error}"
        raise ConfigInvalid.of_field(field, str(path), why) from error
    layout = layout_from_wire(wire)
    validate_layout(layout)
    return layout
