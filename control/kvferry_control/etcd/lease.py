"""Keeps one lease alive, and says so when it cannot be trusted any more."""

import asyncio
from enum import Enum

import structlog

from kvferry_control.etcd import wire
from kvferry_control.etcd.client import EtcdClient
from kvferry_control.etcd.errors import (
    EtcdAuthFailed,
    EtcdLeaseNotFound,
    EtcdRejected,
    EtcdUnavailable,
)
from kvferry_control.etcd.model import Lease

_KEEP_ALIVES_PER_TTL = 3
_REFUSED_RETRY_S = 0.5


class LeaseLoss(Enum):
    """Why a lease cannot be trusted any more."""

    GONE = "etcd does not know the lease"
    UNCONFIRMED = "no confirmation for as long as the lease lives"


class LeaseKeeper:
    """Keeps a lease alive every third of its life, at whichever endpoint answers.

    The lease counts as lost when etcd says so, or when its life has passed since the last keep-alive that
    etcd confirmed was *sent*: from then on another worker may rightfully hold what the lease protected.
    """

    def __init__(self, client: EtcdClient, lease: Lease) -> None:
        self.lease = lease
        self._client = client
        self._ttl_s = lease.ttl_s
        self.confirmed_at = lease.granted_at
        """When the last confirmed keep-alive was sent, in seconds of the event loop's clock."""
        self._log = structlog.get_logger("kvferry.control.etcd").bind(lease=wire.lease_name(lease.lease_id))

    def seconds_left(self) -> float:
        """Time for which the lease is certain to live, negative once it may be gone."""
        return self.confirmed_at + self._ttl_s - asyncio.get_running_loop().time()

    async def run(self) -> LeaseLoss:
        """Keep the lease until it is lost. Cancel to stop: the lease then expires unless it is revoked."""
        while True:
            await asyncio.sleep(max(0.0, self.seconds_left() - self._ttl_s * (1 - 1 / _KEEP_ALIVES_PER_TTL)))
            sent_at = asyncio.get_running_loop().time()
            left_s = self.seconds_left()
            if left_s <= 0:
                return LeaseLoss.UNCONFIRMED
            try:
                self._ttl_s = await self._client.keep_lease(self.lease.lease_id, timeout_s=left_s)
            except EtcdLeaseNotFound:
                return LeaseLoss.GONE
            except EtcdUnavailable as error:
                self._log.warning("lease_unconfirmed", error=str(error))
                return LeaseLoss.UNCONFIRMED
            except (EtcdAuthFailed, EtcdRejected) as error:
                self._log.warning("lease_keep_alive_refused", error=str(error), seconds_left=round(left_s, 3))
                await asyncio.sleep(min(_REFUSED_RETRY_S, left_s))
                continue
            self.confirmed_at = sent_at
