"""What a watcher of the table of transfers sees."""

import time
from contextlib import aclosing

from kvferry_control.config import LimitsSection
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.table import TransferTable


def record(name: str) -> TransferRecord:
    """A transfer that has just been made."""
    return TransferRecord(
        id=name,
        request_id=name,
        fingerprint=b"",
        handle=b"",
        source_worker="prefill-0",
        source_incarnation=1,
        publication="p",
        destination_worker="decode-0",
        destination_incarnation=1,
        blocks={},
        priority=0,
        first_token=0,
        ranks=frozenset({0}),
        deadline=time.monotonic() + 60,
    )


async def test_no_change_is_lost_on_a_watcher_that_is_busy() -> None:
    """A transfer that changes while a watcher is told of another hides no third one's change, and none comes late."""
    table = TransferTable(LimitsSection())
    first, second, third = records = [record(name) for name in ("first", "second", "third")]
    for made in records:
        table.add(made)
    told: list[tuple[str, int]] = []
    async with aclosing(table.changes(first.revision)) as changes:
        async for seen in changes:
            told.append((seen.id, seen.revision))
            if len(told) == 1:
                table.changed(first)
                table.changed(third)
            if seen.revision == table.revision:
                break
    assert [(r.id, r.revision) for r in (second, first, third)] == told
