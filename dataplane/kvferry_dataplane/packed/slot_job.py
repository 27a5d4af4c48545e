"""A chunk that a source holds in a staging slot for this reader."""

from collections.abc import Callable

from kvferry.core.errors import KvferryError
from kvferry.core.planning.copies import CopyPlan
from kvferry.device.copying import CopyJob
from kvferry_dataplane.packed.job import LeaseClaim
from kvferry_dataplane.packed.staging import Slot
from kvferry_dataplane.packed.staging_reads import StagingRead


class SlotJob(CopyJob):
    """A chunk under way: asked for, held, read, scattered and confirmed. Its connection moves it on.

    Belongs to the reads' thread, with all that it refers to.
    """

    def __init__(self, claim: LeaseClaim, batch: CopyPlan, on_cancel: Callable[["SlotJob"], None]) -> None:
        self.claim = claim
        self.batch = batch
        self.total_bytes = batch.total_bytes
        self._on_cancel = on_cancel
        self.number = 0
        self.address: int | None = None
        """Where the source holds it."""
        self.read: StagingRead | None = None
        self.slot: Slot | None = None
        """One's own, as long as it is scattered from."""
        self.tail: CopyJob | None = None
        self.confirmed = False
        """Whether the source has said that what was read was right."""
        self.cancelled = False
        self.failure: KvferryError | None = None

    @property
    def wakes(self) -> bool:
        """False: sockets, NIXL and the copier are polled."""
        return False

    @property
    def done(self) -> bool:
        """Whether it has ended, and nothing of it writes to the pool any more.

        Raises:
            Fenced: the source says that the lease ended.
            PeerError: the source is gone, or was never there.
            ResourceExhausted: the source has no slot free.
            TransportFailed: something else went wrong.
        """
        if self.slot is not None:
            return False
        if self.failure is not None:
            raise self.failure
        return self.cancelled or (self.confirmed and self.tail is not None)

    @property
    def copied_bytes(self) -> int:
        """Bytes that are in place."""
        return 0 if self.tail is None else self.tail.copied_bytes

    def cancel(self) -> None:
        """Ask for an early end; done at once, unless it is being scattered."""
        if not self.cancelled and self.failure is None:
            self.cancelled = True
            self._on_cancel(self)
