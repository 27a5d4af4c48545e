"""The snapshot of workers: what listings and changes make of it, and how two of them differ."""

from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from kvferry.core.errors import ConfigInvalid
from kvferry_control.discovery.snapshot import (
    Changes,
    Entry,
    Removed,
    Snapshot,
    Stored,
    Undecodable,
    apply,
    diff,
    resync,
)

PREFIX = "/kvferry/workers/"
Record = tuple[str, int]


def decode(key: str, value: bytes, create_revision: int) -> Record:
    """Text and incarnation; values that begin with ``bad`` cannot be read."""
    if value.startswith(b"bad"):
        raise ValueError(f"{key}: unreadable")
    return value.decode(), create_revision


def stored(name: str, value: bytes, create_revision: int, mod_revision: int | None = None) -> Stored:
    """A worker's key."""
    return Stored(PREFIX + name, value, create_revision, mod_revision or create_revision)


def entry(found: Stored) -> Entry[Record]:
    """What a readable key becomes."""
    return Entry(found, (found.value.decode(), found.create_revision))


EMPTY: Snapshot[Record] = Snapshot(PREFIX)


def test_a_listing_makes_the_whole_snapshot() -> None:
    """A listing replaces what was there, at its own revision, also when that is lower."""
    before = resync(EMPTY, [stored("a", b"1", 90), stored("b", b"1", 91)], 100, decode)
    after = resync(before, [stored("b", b"2", 3)], 5, decode)
    assert 5 == after.revision
    assert {"b": entry(stored("b", b"2", 3))} == dict(after.workers)


def test_changes_are_applied_in_order() -> None:
    """Later changes of a key win, and the revision is that of the last one."""
    events: list[Stored | Removed] = [
        stored("a", b"1", 2),
        stored("a", b"2", 2, 3),
        stored("b", b"1", 4),
        Removed(PREFIX + "b", 5),
    ]
    after = apply(EMPTY, events, decode)
    assert 5 == after.revision
    assert {"a": entry(stored("a", b"2", 2, 3))} == dict(after.workers)


def test_changes_that_were_seen_change_nothing() -> None:
    """What happened up to the snapshot's revision is in it already, whether put or removed."""
    before = resync(EMPTY, [stored("a", b"2", 2, 6)], 8, decode)
    after = apply(before, [stored("a", b"1", 2, 5), Removed(PREFIX + "a", 7), stored("b", b"1", 8)], decode)
    assert before == after


def test_several_changes_of_one_revision_all_count() -> None:
    """A transaction that writes two keys at one revision changes both."""
    after = apply(EMPTY, [stored("a", b"1", 7), stored("b", b"1", 7)], decode)
    assert {"a", "b"} == set(after.workers)


def test_a_snapshot_is_never_changed() -> None:
    """Applying changes leaves the snapshot they start from as it was, and nobody can write to it."""
    before = resync(EMPTY, [stored("a", b"1", 2)], 2, decode)
    apply(before, [Removed(PREFIX + "a", 3)], decode)
    assert {"a"} == set(before.workers)
    with pytest.raises(TypeError):
        before.workers["b"] = before.workers["a"]  # type: ignore[index]


def test_an_unreadable_value_is_reported_and_hides_the_worker() -> None:
    """A worker whose new value cannot be read is gone from the workers, and the value is kept with the reason."""
    before = resync(EMPTY, [stored("a", b"1", 2), stored("b", b"1", 3)], 3, decode)
    bad = stored("a", b"bad", 2, 4)
    after = apply(before, [bad], decode)
    reason = Undecodable(bad, f"{PREFIX}a: unreadable")
    assert ({"b"}, {"a": reason}) == (set(after.workers), dict(after.undecodable))
    assert Changes(removed=(before.workers["a"],), undecodable=(reason,)) == diff(before, after)
    healed = apply(after, [stored("a", b"2", 2, 5)], decode)
    assert ({"a", "b"}, {}) == (set(healed.workers), dict(healed.undecodable))


def test_an_error_of_the_core_counts_as_unreadable() -> None:
    """Decoders may raise the project's own errors."""

    def refuse(_key: str, _value: bytes, _create_revision: int) -> Record:
        raise ConfigInvalid("no record")

    assert {"a"} == set(resync(EMPTY, [stored("a", b"1", 2)], 2, refuse).undecodable)


def test_a_listing_reads_only_what_changed() -> None:
    """Entries that a listing finds unchanged are kept as they are, without decoding them again."""
    before = resync(EMPTY, [stored("a", b"1", 2)], 2, decode)

    def never(_key: str, _value: bytes, _create_revision: int) -> Record:
        raise AssertionError("decoded again")

    assert before.workers["a"] is resync(before, [stored("a", b"1", 2)], 9, never).workers["a"]


def test_a_worker_that_came_back_is_changed() -> None:
    """A key that was removed and created again in between differs by its create revision."""
    before = resync(EMPTY, [stored("a", b"1", 2)], 2, decode)
    after = apply(before, [Removed(PREFIX + "a", 3), stored("a", b"1", 4)], decode)
    assert Changes(changed=((before.workers["a"], after.workers["a"]),)) == diff(before, after)


def test_equal_snapshots_do_not_differ() -> None:
    """No difference is false."""
    snapshot = resync(EMPTY, [stored("a", b"1", 2)], 2, decode)
    assert not diff(snapshot, resync(EMPTY, [stored("a", b"1", 2)], 7, decode))


names = st.sampled_from("abc")
histories = st.lists(st.tuples(names, st.sampled_from([b"1", b"2", b"bad", None])), max_size=12)


def play(history: Sequence[tuple[str, bytes | None]]) -> tuple[list[Stored | Removed], dict[str, Stored]]:
    """A store's events for writes and deletions (None), and the keys it holds at the end."""
    keys: dict[str, Stored] = {}
    events: list[Stored | Removed] = []
    for revision, (name, value) in enumerate(history, start=2):
        if value is not None:
            created = keys[name].create_revision if name in keys else revision
            keys[name] = stored(name, value, created, revision)
            events.append(keys[name])
        elif keys.pop(name, None):
            events.append(Removed(PREFIX + name, revision))
    return events, keys


@given(histories, st.integers(0, 12))
def test_watching_from_any_listing_ends_at_the_same_snapshot(
    history: list[tuple[str, bytes | None]], listed_count: int
) -> None:
    """A listing anywhere in a history plus all events, even repeated ones, equals a listing at its end."""
    events, keys = play(history)
    _, early = play(history[:listed_count])
    listed = resync(EMPTY, early.values(), min(listed_count, len(history)) + 1, decode)
    watched = apply(listed, events, decode)
    at_end = resync(EMPTY, keys.values(), len(history) + 1, decode)
    assert (dict(at_end.workers), dict(at_end.undecodable)) == (
        dict(watched.workers),
        dict(watched.undecodable),
    )


@given(histories, histories)
def test_a_difference_leads_from_one_snapshot_to_the_other(
    first: list[tuple[str, bytes | None]], second: list[tuple[str, bytes | None]]
) -> None:
    """Added, changed and removed workers together turn the workers before into those after."""
    before = resync(EMPTY, play(first)[1].values(), 20, decode)
    after = resync(EMPTY, play(second)[1].values(), 40, decode)
    changes = diff(before, after)
    workers = {name: found for name, found in before.workers.items() if found not in changes.removed}
    for found in (*changes.added, *(new for _, new in changes.changed)):
        workers[found.stored.key.removeprefix(PREFIX)] = found
    assert dict(after.workers) == workers
