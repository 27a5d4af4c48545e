"""Value types of the etcd client: what goes in and what comes out, free of wire formats."""

from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key. ``lease_id`` is 0 for a key that is bound to none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class StoreState:
    """The store as seen by the member that answered: ``revision`` grows by one per write."""

    cluster_id: int
    member_id: int
    revision: int
    raft_term: int


@dataclass(frozen=True, slots=True)
class Listing:
    """All keys under a prefix at ``state.revision``, in the order of the keys."""

    state: StoreState
    items: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class RangePage:
    """One answer to a read of a range; ``more`` if keys were left out."""

    state: StoreState
    items: tuple[KeyValue, ...]
    more: bool


class CompareTarget(IntEnum):
    """What of a key a transaction compares. A key that does not exist has only zeros."""

    VERSION = 0
    CREATE_REVISION = 1
    MOD_REVISION = 2
    LEASE_ID = 4


@dataclass(frozen=True, slots=True)
class Equals:
    """Condition: the key's ``target`` is ``number``."""

    key: str
    target: CompareTarget
    number: int


@dataclass(frozen=True, slots=True)
class Put:
    """Operation: write a key, bound to a lease unless ``lease_id`` is 0."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Get:
    """Operation: read one key."""

    key: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Operation: delete one key."""

    key: str


Operation = Put | Get | Delete


@dataclass(frozen=True, slots=True)
class TxnResult:
    """Outcome of a transaction. ``reads`` holds one entry per :class:`Get` that ran, in order."""

    succeeded: bool
    state: StoreState
    reads: tuple[KeyValue | None, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as granted. ``granted_at`` is a monotonic time in seconds before which the lease did not run
    yet.
    """

    lease_id: int
    ttl_s: int
    granted_at: float


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """State of one member. ``leader_id`` is 0 if it knows no leader."""

    state: StoreState
    version: str
    leader_id: int
    alarms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PutEvent:
    """A key was written."""

    kv: KeyValue


@dataclass(frozen=True, slots=True)
class DeleteEvent:
    """A key was deleted or expired at ``mod_revision``."""

    key: str
    mod_revision: int


Event = PutEvent | DeleteEvent


def event_revision(event: Event) -> int:
    """The store's revision that the change made."""
    return event.kv.mod_revision if isinstance(event, PutEvent) else event.mod_revision


@dataclass(frozen=True, slots=True)
class WatchMessage:
    """One message of a watch stream.

    ``own`` is False for the answer to a progress request, which says that the member is alive but, on older
    servers, may overtake events: its revision must not be resumed from. ``partial`` if events of the last
    revision follow.
    """

    state: StoreState
    events: tuple[Event, ...]
    own: bool
    created: bool
    canceled: bool
    partial: bool
    compact_revision: int
    cancel_reason: str
