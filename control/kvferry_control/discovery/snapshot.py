"""The view of all workers at one revision: immutable, pure, generic over what a value decodes to.

A :class:`Snapshot` is never changed. Listings and changes make new ones, and :func:`diff` tells two apart, so
that a reader who misses some in between still learns every difference.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from kvferry.core.errors import KvferryError

RecordT = TypeVar("RecordT")

Decode = Callable[[str, bytes, int], RecordT]
"""Takes key, value, create revision; raises ``KvferryError`` or ``ValueError`` for a value it cannot read."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A key as the store holds it: ``create_revision`` is the incarnation unless the value says otherwise."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Removed:
    """A key that was deleted or expired at ``mod_revision``."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Entry(Generic[RecordT]):
    """One worker: what the store holds, and what it means."""

    stored: Stored
    record: RecordT


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A key whose value cannot be read: no worker can be reached through it."""

    stored: Stored
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[RecordT]):
    """All workers as of ``revision``. ``workers`` is keyed by name, the part of the key behind ``prefix``."""

    prefix: str
    revision: int = 0
    workers: Mapping[str, Entry[RecordT]] = field(default_factory=lambda: MappingProxyType({}))
    undecodable: Mapping[str, Undecodable] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Changes(Generic[RecordT]):
    """What differs between two snapshots, each part in the order of names; false if nothing does.

    ``changed`` holds the entry before and after. A worker that went away and came back in between is changed,
    with another create revision. ``undecodable`` are values that are new and cannot be read.
    """

    added: tuple[Entry[RecordT], ...] = ()
    changed: tuple[tuple[Entry[RecordT], Entry[RecordT]], ...] = ()
    removed: tuple[Entry[RecordT], ...] = ()
    undecodable: tuple[Undecodable, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed or self.undecodable)


def resync(
    before: Snapshot[RecordT], listed: Iterable[Stored], revision: int, decode: Decode[RecordT]
) -> Snapshot[RecordT]:
    """The snapshot that a complete listing at ``revision`` makes.

    ``revision`` may be lower than before: a store that lost its data counts anew.
    """
    workers: dict[str, Entry[RecordT]] = {}
    undecodable: dict[str, Undecodable] = {}
    for stored in listed:
        name = worker_name(before.prefix, stored.key)
        known = before.workers.get(name)
        if known is not None and known.stored == stored:
            workers[name] = known
        else:
            _decode_into(workers, undecodable, name, stored, decode)
    return Snapshot(before.prefix, revision, MappingProxyType(workers), MappingProxyType(undecodable))


def apply(before: Snapshot[RecordT], events: Iterable[Stored | Removed], decode: Decode[RecordT]) -> Snapshot[RecordT]:
    """The snapshot after changes in the order of their revisions; those seen before change nothing."""
    workers = dict(before.workers)
    undecodable = dict(before.undecodable)
    revision = before.revision
    for event in events:
        if event.mod_revision <= before.revision:
            continue
        revision = max(revision, event.mod_revision)
        name = worker_name(before.prefix, event.key)
        workers.pop(name, None)
        undecodable.pop(name, None)
        if isinstance(event, Stored):
            _decode_into(workers, undecodable, name, event, decode)
    return Snapshot(before.prefix, revision, MappingProxyType(workers), MappingProxyType(undecodable))


def diff(before: Snapshot[RecordT], after: Snapshot[RecordT]) -> Changes[RecordT]:
    """What a reader of ``before`` has to learn to know ``after``."""
    old, new = before.workers, after.workers
    kept = sorted(new.keys() & old.keys())
    return Changes(
        added=tuple(new[name] for name in sorted(new.keys() - old.keys())),
        changed=tuple((old[name], new[name]) for name in kept if old[name].stored != new[name].stored),
        removed=tuple(old[name] for name in sorted(old.keys() - new.keys())),
        undecodable=tuple(
            after.undecodable[name]
            for name in sorted(after.undecodable)
            if before.undecodable.get(name) != after.undecodable[name]
        ),
    )


def worker_name(prefix: str, key: str) -> str:
    """The part of ``key`` behind ``prefix``."""
    return key.removeprefix(prefix)


def _decode_into(
    workers: dict[str, Entry[RecordT]],
    undecodable: dict[str, Undecodable],
    name: str,
    stored: Stored,
    decode: Decode[RecordT],
) -> None:
    try:
        workers[name] = Entry(stored, decode(stored.key, stored.value, stored.create_revision))
    except (KvferryError, ValueError) as error:
        undecodable[name] = Undecodable(stored, str(error))
