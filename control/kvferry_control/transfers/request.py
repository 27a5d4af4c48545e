"""What an engine asks for when it pulls."""

from dataclasses import dataclass

from kvferry_control.blocks import Blocks


@dataclass(frozen=True, slots=True)
class PullRequest:
    """A pull, its fields checked by themselves but not yet against the layout. ``fingerprint`` is of the body."""

    request_id: str
    fingerprint: bytes
    handle: bytes
    blocks: Blocks
    timeout_s: float
    priority: int
    first_token: int
    data_parallel_rank: int
    compare_every: int = 0
    """Checksums of one block in so many are compared with the source's; 0: none, 1: all."""
