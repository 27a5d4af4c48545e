"""What an engine asks for when it pulls."""

import time
from dataclasses import dataclass

from kvferry_control.blocks import Blocks


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A pull, its fields checked by themselves but not yet against the layout."""

    request_id: str
    handle: bytes
    blocks: Blocks
    timeout_s: float
    priority: int
    first_token: int
    data_parallel_rank: int
    compare_every: int = 0
    """Checksums of one block in so many are compared with the source's; 0: none, 1: all."""
    queue_timeout_s: float | None = None
    """How long it may wait to be served, before ``timeout_s`` begins; None: ``timeout_s`` bounds everything."""
    resumable: bool = False
    """Whether another pull shall be able to go on where it fails."""

    @property
    def total_s(self) -> float:
        """How long it may take, whatever it waits for."""
        return self.timeout_s + (self.queue_timeout_s or 0.0)


def deadline_in(seconds: float | None) -> float | None:
    """When so many seconds have passed, on the monotonic clock."""
    return None if seconds is None else time.monotonic() + seconds
