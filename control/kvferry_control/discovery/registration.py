"""This worker's key in etcd: written in one transaction under a lease, and kept whatever happens to etcd.

The **incarnation** of a worker is the revision at which its key was first created. A key that has to be
written again (its lease expired, etcd lost its data) gets a new create revision, so from then on its value
carries the incarnation.
"""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import structlog

from kvferry.core.errors import WorkerNameTaken
from kvferry_control.discovery.claim import (
    Claim,
    Claimant,
    Encode,
    ValueReader,
    claim_key,
    key_is_held,
    rewrite_key,
)
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.errors import EtcdConfigError, EtcdError
from kvferry_control.etcd.lease import LeaseKeeper
from kvferry_control.etcd.model import Lease

_BACKOFF_S_FIRST = 0.05
_BACKOFF_S_MAX = 1.0
_REVOKE_TIMEOUT_S = 2.0


class RegistrationState(Enum):
    """Where a registration stands. REFUSED and CLOSED are final."""

    REGISTERING = "registering"
    REGISTERED = "registered"
    LOST = "lost"
    REFUSED = "refused"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class RegistrationStatus:
    """State; the incarnation once it is known; and why the last attempt failed, in words."""

    state: RegistrationState
    incarnation: int | None = None
    error: str | None = None


class RegistrationClosed(Exception):
    """The registration was closed while somebody waited for it."""


class Registration:
    """Registers one worker under ``{prefix}/workers/{worker_name}`` and keeps it registered.

    ``encode(explicit_incarnation)`` makes the value. ``instance_id`` names this life of the worker; a key
    that carries the same one (as ``reader`` reads it) is taken over, any other one refuses the registration.
    ``incarnation`` is the one to keep when control was restarted and the worker goes on, None for a new life.

    A holder that crashed keeps its key until its lease expires: with ``patience_s`` a first registration
    waits that long before it is refused. ``on_status`` is called at every change, in the event loop; it must
    not raise. Construction and :meth:`update` raise what ``encode`` raises.

    :meth:`run` does the work, in a task of the caller's.
    """

    def __init__(
        self,
        client: EtcdClient,
        *,
        worker_name: str,
        instance_id: bytes,
        encode: Encode,
        reader: ValueReader,
        incarnation: int | None = None,
        patience_s: float = 0.0,
        on_status: Callable[[RegistrationStatus], None] | None = None,
    ) -> None:
        if not worker_name or "/" in worker_name:
            raise EtcdConfigError("worker_name", worker_name, "must be part of a key: not empty, no slash")
        if not instance_id:
            raise EtcdConfigError("instance_id", instance_id, "must not be empty")
        self.key = f"{client.options.prefix}/workers/{worker_name}"
        self.status = RegistrationStatus(RegistrationState.REGISTERING, incarnation)
        self._client = client
        self._claimant = Claimant(worker_name, self.key, instance_id, reader)
        encode(0)
        self._encode = encode
        self._patience_s = patience_s
        self._on_status = on_status
        self._lease: Lease | None = None
        # Numbers of the value that is wanted and of the one that is written; update() raises the first.
        self._wanted = 1
        self._written = 0
        self._rewrite = asyncio.Event()
        self._closing = asyncio.Event()
        self._moved = asyncio.Condition()
        self._running = False
        self._refusal: WorkerNameTaken | None = None
        self._log = structlog.get_logger("kvferry.control.discovery").bind(worker=worker_name)

    async def run(self) -> None:
        """Register, and register again after every loss, until :meth:`close`. To be called once.

        Raises :class:`WorkerNameTaken` if another instance holds the name; nothing is tried after that.
        """
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(self._keep_registered())
                closing = group.create_task(self._closing.wait())
                await asyncio.wait({work, closing}, return_when=asyncio.FIRST_COMPLETED)
                work.cancel()
                closing.cancel()
            await self._revoke()
            if self._refusal is not None:
                await self._move(RegistrationState.REFUSED, error=str(self._refusal))
                raise self._refusal
        finally:
            self._running = False
            if self._refusal is None:
                await self._move(RegistrationState.CLOSED)
            async with self._moved:
                self._moved.notify_all()

    async def close(self) -> None:
        """Give the name up: end :meth:`run` and revoke the lease, trying for at most two seconds."""
        self._closing.set()
        async with self._moved:
            await self._moved.wait_for(lambda: not self._running)

    async def wait_registered(self) -> int:
        """Wait until the key is held, and answer the incarnation. May wait for as long as etcd is away.

        Raises :class:`WorkerNameTaken` or :class:`RegistrationClosed`.
        """
        await self._wait(lambda: self.status.state is RegistrationState.REGISTERED)
        if self.status.incarnation is None:
            raise AssertionError("registered without an incarnation")
        return self.status.incarnation

    def update(self, encode: Encode) -> None:
        """Let the key carry another value, now or as soon as etcd is there; :meth:`flush` waits for it."""
        encode(self.status.incarnation or 0)
        self._encode = encode
        self._wanted += 1
        self._rewrite.set()

    async def flush(self) -> None:
        """Wait until the newest value is in etcd. Raises what :meth:`wait_registered` raises."""
        wanted = self._wanted
        await self._wait(lambda: self._written >= wanted)

    async def _wait(self, reached: Callable[[], bool]) -> None:
        final = (RegistrationState.REFUSED, RegistrationState.CLOSED)
        async with self._moved:
            await self._moved.wait_for(lambda: reached() or self.status.state in final)
        if self._refusal is not None:
            raise self._refusal
        if self.status.state is RegistrationState.CLOSED:
            raise RegistrationClosed(f"the registration of {self.key} is closed")

    async def _keep_registered(self) -> None:
        try:
            while True:
                lease, claim = await self._register()
                await self._move(RegistrationState.REGISTERED, incarnation=claim.incarnation)
                reason = await self._hold(lease, claim)
                self._written = 0
                await self._move(RegistrationState.LOST, error=reason)
        except WorkerNameTaken as refusal:
            self._refusal = refusal

    async def _register(self) -> tuple[Lease, Claim]:
        """Claim the key, for as long as it takes."""
        loop = asyncio.get_running_loop()
        patient_until = loop.time() + (self._patience_s if self.status.incarnation is None else 0.0)
        backoff_s = _BACKOFF_S_FIRST
        while True:
            try:
                return await self._claim()
            except EtcdError as error:
                reason = str(error)
            except WorkerNameTaken as taken:
                if loop.time() >= patient_until:
                    raise
                reason = str(taken)
            await self._move(RegistrationState.REGISTERING, error=reason)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _BACKOFF_S_MAX)

    async def _claim(self) -> tuple[Lease, Claim]:
        options = self._client.options
        # One attempt only: the reason is to be told at once, and the next attempt asks the next endpoint.
        self._lease = await self._client.grant_lease(options.lease_ttl_s, timeout_s=options.attempt_timeout_s)
        lease, writing = self._lease, self._wanted
        try:
            claim = await claim_key(self._client, self._claimant, lease, self._encode, self.status.incarnation)
        except (EtcdError, WorkerNameTaken):
            # The lease may have expired meanwhile, or be about to: the next attempt gets a new one.
            await self._revoke()
            raise
        await self._wrote(writing)
        return lease, claim

    async def _hold(self, lease: Lease, claim: Claim) -> str:
        """Keep the key until it is lost; answers why."""
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(LeaseKeeper(self._client, lease).run())
            watching = group.create_task(self._keep_value(lease, claim))
            await asyncio.wait({keeping, watching}, return_when=asyncio.FIRST_COMPLETED)
            keeping.cancel()
            watching.cancel()
        if keeping.cancelled():
            await self._revoke()
            return "the key was deleted or overwritten"
        self._lease = None
        return keeping.result().value

    async def _keep_value(self, lease: Lease, claim: Claim) -> None:
        """Write every new value, and look after the key once per lease's life; returns when it is gone."""
        backoff_s = _BACKOFF_S_FIRST
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(lease.ttl_s):
                    await self._rewrite.wait()
            self._rewrite.clear()
            try:
                if not await self._write_or_check(lease, claim):
                    return
                backoff_s = _BACKOFF_S_FIRST
            except EtcdError as error:
                self._log.warning("registration_not_written", error=str(error))
                self._rewrite.set()
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _BACKOFF_S_MAX)

    async def _write_or_check(self, lease: Lease, claim: Claim) -> bool:
        if self._written == self._wanted:
            return await key_is_held(self._client, self.key, lease)
        writing, value = self._wanted, self._encode(claim.explicit_incarnation)
        if not await rewrite_key(self._client, self.key, lease, value):
            return False
        await self._wrote(writing)
        return True

    async def _revoke(self) -> None:
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            await self._client.revoke_lease(lease.lease_id, timeout_s=_REVOKE_TIMEOUT_S)
        except EtcdError as error:
            self._log.warning("lease_left_to_expire", error=str(error), ttl_s=lease.ttl_s)

    async def _wrote(self, number: int) -> None:
        async with self._moved:
            self._written = number
            self._moved.notify_all()

    async def _move(
        self, state: RegistrationState, *, incarnation: int | None = None, error: str | None = None
    ) -> None:
        status = RegistrationStatus(state, incarnation or self.status.incarnation, error)
        if status != self.status:
            self.status = status
            trouble = state in (RegistrationState.LOST, RegistrationState.REFUSED) or error is not None
            log = self._log.warning if trouble else self._log.info
            log("registration", state=state.value, incarnation=status.incarnation, error=error)
            if self._on_status is not None:
                self._on_status(status)
        # Waiters look at more than the status.
        async with self._moved:
            self._moved.notify_all()
