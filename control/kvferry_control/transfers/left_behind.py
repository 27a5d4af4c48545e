"""Reads that data planes still have though no transfer here answers for them.

An earlier life of this control sent them, or their transfers have been forgotten. They are being cancelled; until they
have ended, nobody knows where their bytes go.
"""

from collections.abc import Callable, Iterable


class LeftBehind:
    """Such reads, by rank. ``on_clear`` is told of a rank that has none any more."""

    def __init__(self, on_clear: Callable[[int], None]) -> None:
        self._on_clear = on_clear
        self._reads: dict[int, set[str]] = {}
        self.ranks: frozenset[int] = frozenset()
        """Those with any such read."""
        self._waiting: dict[str, tuple[frozenset[int], Callable[[], None]]] = {}

    def found(self, rank: int, reads: Iterable[str]) -> None:
        """A data plane has told of all that it has."""
        self._reads[rank] = set(reads)
        self._changed(rank)

    def forgot(self, rank: int, read: str) -> None:
        """The transfer of a read that has not ended is not known any more."""
        self._reads.setdefault(rank, set()).add(read)
        self._changed(rank)

    def ended(self, rank: int, read: str) -> None:
        """A read is over; nothing happens if it is none of these."""
        reads = self._reads.get(rank)
        if reads and read in reads:
            reads.discard(read)
            self._changed(rank)

    def when_clear(self, transfer: str, ranks: frozenset[int], callback: Callable[[], None]) -> None:
        """Call back once none of the ranks has any, unless the transfer is dropped before; not before this returns."""
        self._waiting[transfer] = ranks, callback

    def drop(self, transfer: str) -> None:
        """Do not call back any more; nothing happens if nothing waits."""
        self._waiting.pop(transfer, None)

    def _changed(self, rank: int) -> None:
        before, self.ranks = self.ranks, frozenset(rank for rank, reads in self._reads.items() if reads)
        if rank not in before - self.ranks:
            return
        self._on_clear(rank)
        clear = [transfer for transfer, (ranks, _) in self._waiting.items() if not ranks & self.ranks]
        for callback in [self._waiting.pop(transfer)[1] for transfer in clear]:
            callback()
