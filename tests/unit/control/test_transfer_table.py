"""What a watcher of the table of transfers sees."""

import time
from contextlib import aclosing

import pytest

from kvferry.core.drain import RETRY_S_MAX
from kvferry.core.errors import RequestIdReused, ResourceExhausted
from kvferry_control.config import LimitsSection
from kvferry_control.transfers.machine import Life
from kvferry_control.transfers.record import TransferRecord
from kvferry_control.transfers.table import TransferTable


def record(name: str) -> TransferRecord:
    """A transfer that has just been made."""
    return TransferRecord(
        id=name,
        request_id=name,
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


async def test_a_full_table_names_its_bound() -> None:
    """One transfer more than may be active is refused, with the bound's name and value and when to come back."""
    table = TransferTable(LimitsSection(active_transfers=2))
    first = record("first")
    table.add(first)
    table.add(record("second"))
    with pytest.raises(ResourceExhausted) as caught:
        table.add(record("third"))
    assert {"field": "limits.active_transfers", "value": "2"}.items() <= caught.value.metadata.items()
    assert 0 < (caught.value.retry_after_s or 0) <= RETRY_S_MAX
    table.ended(first)
    table.add(record("third"))


def test_transfers_that_a_rank_left_unsettled_are_found() -> None:
    """Of all that are kept, those that wait for a rank's late confirmation, and no other's."""
    table = TransferTable(LimitsSection())
    first, second = record("first"), record("second")
    table.add(first)
    table.add(second)
    second.life = Life(unsettled=frozenset({1}))
    assert [second] == table.unsettled(1)
    assert [] == table.unsettled(0)


def test_a_request_that_comes_again_gives_the_same_transfer() -> None:
    """As long as the transfer is kept, and only with the same body."""
    table = TransferTable(LimitsSection(kept_transfers=1))
    first = record("first")
    first.fingerprint = b"body"
    assert not table.is_known("first")
    table.add(first)
    assert table.is_known("first")
    assert first is table.known("first", b"body")
    with pytest.raises(RequestIdReused):
        table.known("first", b"another")
    second = record("second")
    table.add(second)
    table.ended(first)
    assert table.is_known("first")
    table.ended(second)
    assert not table.is_known("first")
