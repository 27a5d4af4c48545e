"""The table of transfers: bounded, idempotent by request id, watched by revision."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable

from kvferry.core.drain import DrainMeter
from kvferry.core.errors import NotFound, RequestIdReused, ResourceExhausted
from kvferry_control.config import LimitsSection
from kvferry_control.transfers.record import TransferRecord


class TransferTable:
    """Transfers in the order of their last change. A watcher reads forward from a revision and never misses a state
    that lasts, however slow it is; states in between may be skipped. ``on_forgotten`` is told of each that is kept no
    longer."""

    def __init__(self, limits: LimitsSection) -> None:
        self._limits = limits
        self.on_forgotten: Callable[[TransferRecord], None] = lambda _record: None
        self._by_change: OrderedDict[str, TransferRecord] = OrderedDict()
        self._by_request: dict[str, str] = {}
        self._kept: deque[str] = deque()
        self.withdrawn: OrderedDict[str, None] = OrderedDict()
        """Requests that are to make nothing if they come yet: as many as transfers are kept."""
        self._revision = 0
        self._drain = DrainMeter()
        self._watchers: set[asyncio.Event] = set()

    @property
    def revision(self) -> int:
        """Of the newest change."""
        return self._revision

    @property
    def active_count(self) -> int:
        """Transfers that have not ended."""
        return len(self._by_change) - len(self._kept)

    def active(self) -> list[TransferRecord]:
        """Transfers that have not ended."""
        return [record for record in self._by_change.values() if not record.life.state.terminal]

    def unfinished(self) -> list[TransferRecord]:
        """Transfers that have not ended, or not settled."""
        return [
            record for record in self._by_change.values() if not record.life.state.terminal or not record.life.settled
        ]

    def unsettled(self, rank: int) -> list[TransferRecord]:
        """Transfers that ended, or end, without this rank's confirmation that no byte can still arrive."""
        return [record for record in self._by_change.values() if rank in record.life.unsettled]

    def disturbed(self, rank: int) -> list[TransferRecord]:
        """Transfers in whose blocks reads of others may still write, as far as is known."""
        return [record for record in self._by_change.values() if rank in record.life.disturbed]

    def newest_first(self) -> list[TransferRecord]:
        """All transfers that are kept, the newest first."""
        return sorted(self._by_change.values(), key=lambda record: record.begun, reverse=True)

    def find(self, transfer_id: str) -> TransferRecord | None:
        """One transfer, or None."""
        return self._by_change.get(transfer_id)

    def get(self, transfer_id: str) -> TransferRecord:
        """One transfer.

        Raises:
            NotFound: there is none, or it ended long ago.
        """
        record = self.find(transfer_id)
        if record is None:
            raise NotFound.of_field("name", f"transfers/{transfer_id}", "no such transfer")
        return record

    def is_known(self, request_id: str) -> bool:
        """Whether a transfer is kept that this request made before."""
        return self._by_request.get(request_id) in self._by_change

    def known(self, request_id: str, body: bytes) -> TransferRecord:
        """The transfer that a known request made.

        Raises:
            RequestIdReused: the id came with another body.
        """
        record = self.of_request(request_id)
        if record.fingerprint != body:
            raise RequestIdReused.of_field("request_id", request_id, "was used with another body")
        return record

    def of_request(self, request_id: str) -> TransferRecord:
        """The transfer that a known request made, whatever its body was."""
        return self._by_change[self._by_request[request_id]]

    def withdraw(self, request_id: str) -> None:
        """Note that a request which is not known is to make nothing."""
        self.withdrawn[request_id] = None
        if len(self.withdrawn) > self._limits.kept_transfers:
            self.withdrawn.popitem(last=False)

    def forget_requests(self, of: Callable[[TransferRecord], bool]) -> None:
        """Have the requests of such transfers make new ones if they come again; the transfers are kept."""
        self._by_request = {
            request_id: transfer
            for request_id, transfer in self._by_request.items()
            if not of(self._by_change[transfer])
        }

    def add(self, record: TransferRecord) -> None:
        """Take up a new transfer.

        Raises:
            ResourceExhausted: as many are active as may be.
        """
        active = self.active_count
        self._drain.advance(time.monotonic(), busy=active > 0)
        if active >= self._limits.active_transfers:
            raise ResourceExhausted.of_bound(
                "limits.active_transfers", active, "so many transfers are active", self._drain.retry_after_s(active)
            )
        self._by_request[record.request_id] = record.id
        self.changed(record)

    def changed(self, record: TransferRecord) -> None:
        """Note a change and wake the watchers."""
        self._revision += 1
        record.revision = self._revision
        self._by_change[record.id] = record
        self._by_change.move_to_end(record.id)
        for watcher in self._watchers:
            watcher.set()

    def ended(self, record: TransferRecord) -> None:
        """Note that a transfer is terminal; the oldest such beyond the bound is forgotten."""
        self._drain.advance(time.monotonic(), busy=True)
        self._drain.done(1)
        self._kept.append(record.id)
        while len(self._kept) > self._limits.kept_transfers:
            oldest = self._by_change.pop(self._kept.popleft())
            if self._by_request.get(oldest.request_id) == oldest.id:
                del self._by_request[oldest.request_id]
            self.on_forgotten(oldest)

    async def changes(self, after_revision: int) -> AsyncGenerator[TransferRecord, None]:
        """Every transfer as it changes, in the order of changes; the revisions only grow."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                for revision, record in self._since(after_revision):
                    after_revision = revision
                    # One that has changed since comes again, after those that changed before it.
                    if record.revision == revision:
                        yield record
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _since(self, revision: int) -> list[tuple[int, TransferRecord]]:
        newer: list[tuple[int, TransferRecord]] = []
        for record in reversed(self._by_change.values()):
            if record.revision <= revision:
                break
            newer.append((record.revision, record))
        newer.reverse()
        return newer
