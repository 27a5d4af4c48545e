"""The etcd client: every call is tried at one endpoint after the other until its deadline."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, TypeVar

import grpc

from kvferry_control.etcd import wire
from kvferry_control.etcd.auth import TokenSource
from kvferry_control.etcd.config import EtcdOptions
from kvferry_control.etcd.endpoints import Endpoint, EndpointPool, Metadata
from kvferry_control.etcd.errors import (
    EtcdAnswerTooLarge,
    EtcdCompacted,
    EtcdError,
    EtcdFutureRevision,
    EtcdLeaseExists,
    EtcdLeaseNotFound,
    EtcdListingTooLong,
    EtcdTlsFailed,
    EtcdUnavailable,
)
from kvferry_control.etcd.model import (
    Equals,
    KeyValue,
    Lease,
    Listing,
    MemberStatus,
    Operation,
    Put,
    StoreState,
    TxnResult,
)
from kvferry_control.etcd.translate import is_stale_token, translate

_BACKOFF_S_FIRST = 0.05
_BACKOFF_S_MAX = 0.5
_LISTING_ATTEMPTS_MAX = 5
_LEASE_ID_BITS = 62

ResultT = TypeVar("ResultT")


class EtcdClient:
    """Client of one etcd cluster, for one event loop.

    Calls raise :class:`EtcdUnavailable` when no endpoint answered within ``operation_timeout_s``,
    :class:`EtcdAuthFailed` when the credentials were refused, :class:`EtcdRejected` or a subclass when
    etcd said no.

    A call whose answer was lost is sent again, so a write may be applied twice, and the second time its
    conditions meet its own effect: a transaction must recognise that by what it reads when it does not
    succeed.
    """

    def __init__(self, options: EtcdOptions) -> None:
        self.options = options
        self.endpoints = EndpointPool(options)
        self.tokens = TokenSource(options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; calls and watches under way fail."""
        await self.endpoints.close()

    async def get(self, key: str) -> KeyValue | None:
        """Read one key."""
        page = await self._invoke(wire.get_call(key))
        return page.items[0] if page.items else None

    async def get_prefix(self, prefix: str, *, timeout_s: float | None = None) -> Listing:
        """Read all keys under ``prefix`` as of one revision, page by page; ``timeout_s`` is for each page.

        Raises :class:`EtcdListingTooLong` beyond ``listing_keys_max`` keys.
        """
        for attempt in range(1, _LISTING_ATTEMPTS_MAX + 1):
            try:
                return await self._list_once(prefix, timeout_s)
            except (EtcdCompacted, EtcdFutureRevision):
                # The revision of the first page was compacted, or lost with its member, before the last page.
                if attempt == _LISTING_ATTEMPTS_MAX:
                    raise
        raise AssertionError("unreachable")

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> StoreState:
        """Write one key; the answer's revision is the key's new ``mod_revision``."""
        return await self._invoke(wire.put_call(Put(key, value, lease_id)))

    async def delete(self, key: str) -> bool:
        """Delete one key. False if it was not there (or an attempt whose answer was lost has deleted it)."""
        return await self._invoke(wire.delete_call(key))

    async def txn(
        self, compares: Iterable[Equals], then: Iterable[Operation], otherwise: Iterable[Operation] = ()
    ) -> TxnResult:
        """Run ``then`` if all ``compares`` hold, else ``otherwise``, atomically."""
        return await self._invoke(wire.txn_call(compares, then, otherwise))

    async def grant_lease(self, ttl_s: int, *, timeout_s: float | None = None) -> Lease:
        """Make a lease. etcd may grant a longer life than asked for."""
        lease_id = secrets.randbits(_LEASE_ID_BITS) + 1
        granted_at = asyncio.get_running_loop().time()
        try:
            granted_s = await self._invoke(wire.grant_call(lease_id, ttl_s), timeout_s=timeout_s)
        except EtcdLeaseExists:
            # The number is random, so it is ours: an earlier attempt was applied and only its answer was
            # lost.
            granted_s = await self._invoke(wire.time_to_live_call(lease_id), timeout_s=timeout_s)
        return Lease(lease_id, granted_s, granted_at)

    async def keep_lease(self, lease_id: int, *, timeout_s: float | None = None) -> int:
        """Keep a lease alive; answers the seconds that it lives from now.

        Raises :class:`EtcdLeaseNotFound` if it is gone.
        """

        async def attempt(endpoint: Endpoint, metadata: Metadata, attempt_s: float) -> int:
            return await _keep_alive(endpoint, metadata, lease_id, attempt_s)

        return await self._try_endpoints(attempt, wire.lease_name(lease_id), timeout_s)

    async def revoke_lease(self, lease_id: int, *, timeout_s: float | None = None) -> None:
        """End a lease and delete its keys. A lease that is gone already is no error."""
        try:
            await self._invoke(wire.revoke_call(lease_id), timeout_s=timeout_s)
        except EtcdLeaseNotFound:
            return

    async def status(self) -> MemberStatus:
        """State of the member that answers."""
        return await self._invoke(wire.status_call())

    async def compact(self, revision: int) -> None:
        """Forget the history before ``revision``; the newest value of every key stays."""
        await self._invoke(wire.compact_call(revision))

    async def _list_once(self, prefix: str, timeout_s: float | None) -> Listing:
        limit = self.options.listing_page_keys
        items: list[KeyValue] = []
        state: StoreState | None = None
        while True:
            start = wire.key_after(items[-1].key) if items else wire.encode_key(prefix)
            revision = state.revision if state else 0
            try:
                call = wire.range_call(prefix, start, limit=limit, revision=revision)
                page = await self._invoke(call, timeout_s=timeout_s)
            except EtcdAnswerTooLarge:
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            state = state or page.state
            items.extend(page.items)
            if len(items) > self.options.listing_keys_max:
                detail = f"more than listing_keys_max={self.options.listing_keys_max} keys"
                raise EtcdListingTooLong(detail, key=prefix)
            if not page.more:
                return Listing(state, tuple(items))

    async def _invoke(self, call: wire.Call[ResultT], *, timeout_s: float | None = None) -> ResultT:
        async def attempt(endpoint: Endpoint, metadata: Metadata, attempt_s: float) -> ResultT:
            return call.decode(await endpoint.unary(call.path)(call.request, timeout=attempt_s, metadata=metadata))

        return await self._try_endpoints(attempt, call.key, timeout_s)

    async def _try_endpoints(
        self,
        attempt: Callable[[Endpoint, Metadata, float], Awaitable[ResultT]],
        key: str,
        timeout_s: float | None,
    ) -> ResultT:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.options.operation_timeout_s if timeout_s is None else timeout_s)
        backoff_s = _BACKOFF_S_FIRST
        failure_count = 0
        while True:
            endpoint = self.endpoints.current
            attempt_s = max(0.001, min(self.options.attempt_timeout_s, deadline - loop.time()))
            try:
                return await self._attempt(endpoint, attempt, key, attempt_s)
            except EtcdUnavailable as error:
                failure_count += 1
                await self._leave(endpoint, error)
                all_failed = failure_count % len(self.endpoints) == 0
                pause_s = backoff_s if all_failed else 0.0
                if loop.time() + pause_s >= deadline:
                    raise
                if all_failed:
                    backoff_s = min(2 * backoff_s, _BACKOFF_S_MAX)
                    await asyncio.sleep(pause_s)

    async def _leave(self, endpoint: Endpoint, error: EtcdUnavailable) -> None:
        self.endpoints.move_on_from(endpoint)
        if isinstance(error, EtcdTlsFailed):
            await endpoint.reset()

    async def _attempt(
        self,
        endpoint: Endpoint,
        attempt: Callable[[Endpoint, Metadata, float], Awaitable[ResultT]],
        key: str,
        attempt_s: float,
    ) -> ResultT:
        """One attempt at one endpoint, and a second one if the first only found the token stale."""
        metadata = await self.tokens.metadata(endpoint, attempt_s)
        try:
            return await translated(attempt(endpoint, metadata, attempt_s), endpoint, key)
        except EtcdError as error:
            if not (is_stale_token(error) and self.tokens.forget(metadata)):
                raise
        metadata = await self.tokens.metadata(endpoint, attempt_s)
        return await translated(attempt(endpoint, metadata, attempt_s), endpoint, key)


async def translated(outcome: Awaitable[ResultT], endpoint: Endpoint, key: str) -> ResultT:
    """Await ``outcome``; failures of grpc become errors that name the endpoint and the key."""
    try:
        return await outcome
    except grpc.aio.AioRpcError as failure:
        raise translate(failure, endpoint=endpoint.address, key=key) from failure
    except asyncio.CancelledError as cancelled:
        # grpc also raises this when somebody else closed the channel; only a cancelled task may end by it.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise EtcdUnavailable("the connection was closed", endpoint=endpoint.address, key=key) from cancelled


async def _keep_alive(endpoint: Endpoint, metadata: Metadata, lease_id: int, attempt_s: float) -> int:
    """Keep a lease alive by a stream of one message: unlike a long stream it cannot be silently stuck."""
    stream = endpoint.stream(wire.KEEP_ALIVE_PATH)(timeout=attempt_s, metadata=metadata)
    try:
        await stream.write(wire.keep_alive_request(lease_id))
        answer = await stream.read()
    except asyncio.InvalidStateError as error:
        # grpc answers so when the stream ended between the two calls; its status says why.
        raise EtcdUnavailable(str(await stream.details()), endpoint=endpoint.address) from error
    finally:
        stream.cancel()
    if not isinstance(answer, bytes):
        raise EtcdUnavailable("the stream ended without an answer", endpoint=endpoint.address)
    ttl_s = wire.keep_alive_ttl_s(answer)
    if ttl_s <= 0:
        detail = "the lease has expired or was lost"
        raise EtcdLeaseNotFound(detail, endpoint=endpoint.address, key=wire.lease_name(lease_id))
    return ttl_s
