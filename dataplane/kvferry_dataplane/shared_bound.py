"""A bound that sources share without any of them being able to use it up. Pure.

Dynamic thresholds: a source may hold more only while it holds less than ``alpha`` times what is free. So ``n`` greedy
sources leave ``1 / (1 + n * alpha)`` of the bound to whoever comes next, and a source that is alone has most of it.
(A. K. Choudhury, E. L. Hahne: Dynamic Queue Length Thresholds for Shared-Memory Packet Switches, IEEE/ACM Transactions
on Networking 6(2), 1998.)
"""


class SharedBound:
    """Counts what every source holds of ``limit``."""

    def __init__(self, limit: int, alpha: float) -> None:
        self.limit = limit
        self._alpha = alpha
        self._held: dict[str, int] = {}
        self.total = 0

    def held(self, source: str) -> int:
        """What a source holds."""
        return self._held.get(source, 0)

    def share(self, source: str) -> int:
        """How much a source may hold for now."""
        free = self.limit - self.total
        return min(int(self._alpha * free), self.held(source) + free)

    def has_room(self, source: str, amount: int) -> bool:
        """Whether a source may hold ``amount`` more: there is room, and it holds nothing or less than its share."""
        held = self._held.get(source, 0)
        return self.total + amount <= self.limit and (not held or held < self._alpha * (self.limit - self.total))

    def take(self, source: str, amount: int) -> None:
        """Hold more, whether there is room or not."""
        self._held[source] = self._held.get(source, 0) + amount
        self.total += amount

    def give_back(self, source: str, amount: int) -> None:
        """Hold less."""
        left = self._held.get(source, 0) - amount
        if left:
            self._held[source] = left
        else:
            self._held.pop(source, None)
        self.total -= amount
