"""The lease table: which blocks are pinned for readers, and the words that prove it. Pure.

A lease word is a nonce in memory that peers read after they have read the blocks. As long as it stands, the blocks are
pinned. No byte of a nonce is zero and a cleared word is zero, so a torn read can never look like a live lease.
"""

import heapq
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvferry.core.blocks import BlockLists
from kvferry.core.drain import RETRY_S_MAX, RETRY_S_MIN
from kvferry.core.errors import InvalidArgument, MessageTooLarge, NotFound, ResourceExhausted
from kvferry_dataplane.blocks import BlockCounters

ATTRIBUTES_BYTES_MAX = 1024
TTL_SECONDS_MAX = 24 * 3600.0
PUBLICATION_CHARS_MAX = 256
WORD_BYTES = 8
_HEAP_SLACK = 64


@dataclass(frozen=True, slots=True)
class Lease:
    """Blocks that are pinned until ``expires_at``, on the clock that the table's callers use."""

    publication: str
    slot: int
    word: int
    blocks: BlockLists
    expires_at: float
    attributes: bytes

    def __repr__(self) -> str:
        # The word is a secret: it must not reach a log by way of a repr.
        return f"Lease({self.publication!r}, slot={self.slot}, expires_at={self.expires_at})"


def new_word() -> int:
    """A random nonce of 8 bytes, none of them zero."""
    return int.from_bytes(bytes(1 + secrets.randbelow(255) for _ in range(WORD_BYTES)), "little")


class LeaseTable:
    """Leases over one rank's blocks, with their words in ``words``.

    ``words`` is the memory that peers read: one 8-byte word per slot. Its length bounds the number of leases.
    """

    def __init__(self, words: npt.NDArray[np.uint64], word_source: Callable[[], int] = new_word) -> None:
        words[:] = 0
        self._words = words
        self._word_source = word_source
        self._free = deque(range(words.size))
        self._leases: dict[str, Lease] = {}
        self._expiries: list[tuple[float, str]] = []
        self._pins = BlockCounters({})

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def slot_count(self) -> int:
        """Leases that fit."""
        return int(self._words.size)

    @property
    def pins(self) -> BlockCounters:
        """How many leases pin each block."""
        return self._pins

    def leases(self) -> list[Lease]:
        """All leases that hold."""
        return list(self._leases.values())

    def reset(self, block_counts: Mapping[str, int]) -> list[str]:
        """End every lease and start over with these groups; returns the publications that ended."""
        ended = list(self._leases)
        for publication in ended:
            self.release(publication)
        self._pins = BlockCounters(block_counts)
        return ended

    def acquire(self, publication: str, blocks: BlockLists, ttl: float, attributes: bytes, now: float) -> Lease:
        """Pin ``blocks`` (already checked) for ``ttl`` seconds and write a word into a free slot.

        Raises:
            InvalidArgument: the publication is named badly or holds a lease already, or the ttl is out of bounds.
            MessageTooLarge: too many attributes.
            ResourceExhausted: no slot is free.
        """
        if not 1 <= len(publication) <= PUBLICATION_CHARS_MAX:
            raise InvalidArgument.of_field(
                "publication", publication, f"must have 1 to {PUBLICATION_CHARS_MAX} characters"
            )
        if publication in self._leases:
            raise InvalidArgument.of_field("publication", publication, "has a lease already")
        _check_ttl(ttl)
        if len(attributes) > ATTRIBUTES_BYTES_MAX:
            raise MessageTooLarge.of_field(
                "attributes", f"{len(attributes)} bytes", f"at most {ATTRIBUTES_BYTES_MAX} bytes are kept"
            )
        if not self._free:
            raise ResourceExhausted.of_bound(
                "lease_slot_count", self.slot_count, "every lease slot is in use", self._until_next_end(now)
            )
        self._pins.hold(blocks)
        lease = Lease(publication, self._free.popleft(), self._word_source(), blocks, now + ttl, attributes)
        self._leases[publication] = lease
        self._push_expiry(lease)
        self._words[lease.slot] = lease.word
        return lease

    def renew(self, publication: str, ttl: float, now: float) -> Lease:
        """Let a lease last ``ttl`` seconds from ``now``.

        Raises:
            NotFound: it has ended, or never was.
            InvalidArgument: the ttl is out of bounds.
        """
        _check_ttl(ttl)
        lease = self._leases.get(publication)
        if lease is None or lease.expires_at <= now:
            raise NotFound.of_field("publication", publication, "holds no lease")
        renewed = replace(lease, expires_at=now + ttl)
        self._leases[publication] = renewed
        self._push_expiry(renewed)
        return renewed

    def release(self, publication: str) -> bool:
        """Clear the word, then unpin. False if there was no such lease."""
        lease = self._leases.pop(publication, None)
        if lease is None:
            return False
        # The order is what makes a read safe: one aligned 8-byte store, and only then may a block be used again.
        self._words[lease.slot] = 0
        self._pins.drop(lease.blocks)
        self._free.append(lease.slot)
        return True

    def expire(self, now: float) -> list[str]:
        """End every lease whose time is over; returns their publications."""
        ended = []
        while self._expiries and self._expiries[0][0] <= now:
            _, publication = heapq.heappop(self._expiries)
            lease = self._leases.get(publication)
            if lease is not None and lease.expires_at <= now and self.release(publication):
                ended.append(publication)
        return ended

    def next_expiry(self) -> float | None:
        """When a lease may end next; None while there is none. Never later than the true time."""
        return self._expiries[0][0] if self._expiries else None

    def _until_next_end(self, now: float) -> float:
        """Seconds until a slot is free at the latest; one that is released is free before."""
        expiry = self.next_expiry()
        return RETRY_S_MAX if expiry is None else min(max(expiry - now, RETRY_S_MIN), RETRY_S_MAX)

    def _push_expiry(self, lease: Lease) -> None:
        heapq.heappush(self._expiries, (lease.expires_at, lease.publication))
        if len(self._expiries) > 2 * len(self._leases) + _HEAP_SLACK:
            # Renewals leave stale entries behind: rebuilding keeps the heap in proportion to the leases.
            self._expiries = [(lease.expires_at, name) for name, lease in self._leases.items()]
            heapq.heapify(self._expiries)


def _check_ttl(ttl: float) -> None:
    if not 0 < ttl <= TTL_SECONDS_MAX:
        raise InvalidArgument.of_field("ttl", ttl, f"must be more than 0 and at most {TTL_SECONDS_MAX:g} seconds")
