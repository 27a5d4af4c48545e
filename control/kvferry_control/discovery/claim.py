"""Claiming a worker's key: create it, or take it over from an earlier life of the same worker, atomically."""

from collections.abc import Callable
from dataclasses import dataclass

from kvferry.core.errors import WorkerNameTaken
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.errors import EtcdUnavailable
from kvferry_control.etcd.model import CompareTarget, Equals, Get, KeyValue, Lease, Put

_ATTEMPTS_MAX = 16
_SHOWN_CHARS_MAX = 500

Encode = Callable[[int], bytes]
"""Makes a worker's value for an explicit incarnation; with 0 the key's create revision is the incarnation."""


def create_revision_of(_key: str, _value: bytes, create_revision: int) -> int:
    """The incarnation of a worker whose value never carries one."""
    return create_revision


@dataclass(frozen=True, slots=True)
class ValueReader:
    """How to read a value that is there already, perhaps somebody else's.

    ``instance_of(value)`` gives the instance id, empty for a value that cannot be read.
    ``incarnation_of(key, value, create_revision)`` is asked only about values of one's own instance.
    """

    instance_of: Callable[[bytes], bytes]
    incarnation_of: Callable[[str, bytes, int], int] = create_revision_of


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims which key. ``instance_id`` tells lives of workers apart that share the name."""

    worker_name: str
    key: str
    instance_id: bytes
    reader: ValueReader


@dataclass(frozen=True, slots=True)
class Claim:
    """A key that is held. ``explicit_incarnation`` is what its value must go on to say."""

    incarnation: int
    explicit_incarnation: int


async def claim_key(
    client: EtcdClient, claimant: Claimant, lease: Lease, encode: Encode, incarnation: int | None
) -> Claim:
    """Put the key under ``lease``. ``incarnation`` is the one to keep, None for a worker that has none yet.

    Raises :class:`WorkerNameTaken` if another instance holds the key, and :class:`EtcdError`.
    """
    explicit = incarnation or 0
    existing: KeyValue | None = None
    for _ in range(_ATTEMPTS_MAX):
        if existing is None:
            explicit = incarnation or 0
            condition = Equals(claimant.key, CompareTarget.CREATE_REVISION, 0)
        else:
            explicit = _adopted_incarnation(claimant, existing, incarnation)
            condition = Equals(claimant.key, CompareTarget.MOD_REVISION, existing.mod_revision)
        put = Put(claimant.key, encode(explicit), lease.lease_id)
        result = await client.txn([condition], [put], [Get(claimant.key)])
        if result.succeeded:
            created = existing.create_revision if existing else result.state.revision
            return Claim(explicit or created, explicit)
        (existing,) = result.reads
        if existing is not None and existing.lease_id == lease.lease_id:
            # An earlier attempt was applied and its answer lost: nobody else knows the lease.
            return Claim(explicit or existing.create_revision, explicit)
    raise EtcdUnavailable(f"the key changed {_ATTEMPTS_MAX} times in between", key=claimant.key)


async def rewrite_key(client: EtcdClient, key: str, lease: Lease, value: bytes) -> bool:
    """Write the key if it is still held under ``lease``. False if it is not; safe to send twice."""
    held = Equals(key, CompareTarget.LEASE_ID, lease.lease_id)
    return (await client.txn([held], [Put(key, value, lease.lease_id)])).succeeded


async def key_is_held(client: EtcdClient, key: str, lease: Lease) -> bool:
    """True if the key is still there under ``lease``."""
    found = await client.get(key)
    return found is not None and found.lease_id == lease.lease_id


def _adopted_incarnation(claimant: Claimant, existing: KeyValue, incarnation: int | None) -> int:
    """The explicit incarnation with which the same instance goes on under an existing key."""
    holder = claimant.reader.instance_of(existing.value)
    if holder != claimant.instance_id:
        raise _taken(claimant, existing, holder)
    kept = incarnation
    if kept is None:
        kept = claimant.reader.incarnation_of(existing.key, existing.value, existing.create_revision)
    return 0 if kept == existing.create_revision else kept


def _taken(claimant: Claimant, existing: KeyValue, holder: bytes) -> WorkerNameTaken:
    who = f"instance {holder.hex()}" if holder else "a value that is no record of a worker"
    return WorkerNameTaken(
        f"worker {claimant.worker_name!r} is registered by another process ({who}) under {claimant.key}",
        metadata={
            "field": "worker.name",
            "value": claimant.worker_name,
            "key": claimant.key,
            "holder_instance": holder.hex(),
            "holder_value": existing.value.decode("utf-8", "backslashreplace")[:_SHOWN_CHARS_MAX],
        },
    )
