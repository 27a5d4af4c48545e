"""The lease table."""

import numpy as np
import pytest

from kvferry.core.blocks import BlockIds
from kvferry.core.errors import InvalidArgument, MessageTooLarge, NotFound, ResourceExhausted
from kvferry_dataplane.leases import ATTRIBUTES_BYTES_MAX, LeaseTable, new_word


def table(slot_count: int = 4) -> LeaseTable:
    """A table over one group of ten blocks."""
    made = LeaseTable(np.zeros(slot_count, dtype=np.uint64))
    made.reset({"full": 10})
    return made


def blocks(*ids: int) -> dict[str, BlockIds]:
    """Block ids of that group."""
    return {"full": np.array(ids, dtype=np.int64)}


def test_no_byte_of_a_word_is_zero() -> None:
    """A torn read of a word, part nonce and part cleared, can never equal it."""
    words = {new_word() for _ in range(2000)}
    assert not any(0 in word.to_bytes(8, "little") for word in words)
    assert 2000 == len(words)


def test_a_word_is_written_and_cleared() -> None:
    """The word stands in its slot while the lease holds, and is zero after."""
    words = np.ones(2, dtype=np.uint64)
    leases = LeaseTable(words)
    leases.reset({"full": 10})
    lease = leases.acquire("p", blocks(1, 2), 5.0, b"x", 0.0)
    assert [lease.word, 0] == words.tolist()
    assert leases.release("p")
    assert [0, 0] == words.tolist()
    assert not leases.release("p")


def test_the_word_is_cleared_before_the_blocks_are_unpinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment a block is unpinned, its lease word reads zero."""
    words = np.zeros(1, dtype=np.uint64)
    leases = LeaseTable(words)
    leases.reset({"full": 10})
    leases.acquire("p", blocks(1), 5.0, b"", 0.0)
    seen: list[int] = []
    monkeypatch.setattr(leases.pins, "drop", lambda _: seen.append(int(words[0])))
    leases.release("p")
    assert [0] == seen


def test_blocks_of_several_leases_stay_pinned_until_the_last() -> None:
    """A block that two publications share is pinned until both have ended."""
    leases = table()
    leases.acquire("a", blocks(1, 2), 5.0, b"", 0.0)
    leases.acquire("b", blocks(2, 3), 5.0, b"", 0.0)
    leases.release("a")
    assert not leases.pins.is_held(blocks(1))
    assert leases.pins.is_held(blocks(2))
    leases.release("b")
    assert 0 == leases.pins.held_count()


def test_slots_are_reused_oldest_first() -> None:
    """A freed slot waits behind all other free ones, so that an old word's slot is not written again at once."""
    leases = table(3)
    leases.acquire("a", blocks(0), 5.0, b"", 0.0)
    leases.release("a")
    assert [1, 2, 0] == [leases.acquire(name, blocks(0), 5.0, b"", 0.0).slot for name in "bcd"]


def test_expiry_and_renewal() -> None:
    """A lease ends at its time, a renewed one at its new time, and the table knows when to look again."""
    leases = table()
    leases.acquire("a", blocks(0), 5.0, b"", 0.0)
    leases.acquire("b", blocks(1), 6.0, b"", 0.0)
    assert 5.0 == leases.next_expiry()
    leases.renew("a", 20.0, 1.0)
    assert [] == leases.expire(5.5)
    assert ["b"] == leases.expire(6.0)
    assert ["a"] == leases.expire(21.0)
    assert leases.next_expiry() is None


def test_an_expired_lease_is_not_renewed() -> None:
    """A lease whose time is over cannot be renewed, even if nobody has ended it yet."""
    leases = table()
    leases.acquire("a", blocks(0), 5.0, b"", 0.0)
    with pytest.raises(NotFound):
        leases.renew("a", 5.0, 5.0)


def test_renewals_do_not_pile_up() -> None:
    """However often a lease is renewed, what is kept about it stays bounded."""
    leases = table()
    leases.acquire("a", blocks(0), 5.0, b"", 0.0)
    for moment in range(1, 1000):
        leases.renew("a", 5.0, moment / 1000)
    assert len(leases._expiries) < 100
    assert ["a"] == leases.expire(10.0)


def test_refusals_change_nothing() -> None:
    """A publication twice, a full table, too many attributes or a bad ttl are refused, and pin nothing."""
    leases = table(1)
    leases.acquire("a", blocks(0), 5.0, b"", 0.0)
    with pytest.raises(InvalidArgument):
        leases.acquire("a", blocks(1), 5.0, b"", 0.0)
    with pytest.raises(ResourceExhausted):
        leases.acquire("b", blocks(1), 5.0, b"", 0.0)
    with pytest.raises(MessageTooLarge):
        leases.acquire("b", blocks(1), 5.0, b"x" * (ATTRIBUTES_BYTES_MAX + 1), 0.0)
    with pytest.raises(InvalidArgument):
        leases.acquire("b", blocks(1), float("nan"), b"", 0.0)
    assert not leases.pins.is_held(blocks(1))
    assert 1 == len(leases)


def test_a_lease_does_not_show_its_word() -> None:
    """The word does not appear where a lease is printed."""
    lease = table().acquire("a", blocks(0), 5.0, b"", 0.0)
    assert str(lease.word) not in repr(lease)
