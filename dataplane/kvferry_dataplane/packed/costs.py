"""Which of two ways to read a plan takes less time. Pure.

A way costs so much for every request, every piece and every byte. It is measured once, and then follows what reads
really took.
"""

from dataclasses import dataclass

_FORGETTING = 0.2
"""Weight of the newest read."""
_FACTOR_MIN, _FACTOR_MAX = 1 / 16, 16.0
_LEARN_BYTES_MIN = 1 << 20
"""Shorter reads say more of the machine's moods than of the way."""


@dataclass(frozen=True, slots=True)
class WayCost:
    """What one way of reading costs."""

    request_seconds: float
    """Before the first byte."""
    piece_seconds: float
    byte_seconds: float
    factor: float = 1.0
    """What reads have taken, over what they were estimated to take."""

    def seconds(self, piece_count: int, total_bytes: int) -> float:
        """How long a plan is expected to take."""
        return self.request_seconds + self.factor * self._moving(piece_count, total_bytes)

    def learned(self, piece_count: int, total_bytes: int, seconds: float) -> "WayCost":
        """The cost after a read that took so long."""
        if total_bytes < _LEARN_BYTES_MIN:
            return self
        seen = max(seconds - self.request_seconds, 0.0) / self._moving(piece_count, total_bytes)
        factor = (1 - _FORGETTING) * self.factor + _FORGETTING * min(max(seen, _FACTOR_MIN), _FACTOR_MAX)
        return WayCost(self.request_seconds, self.piece_seconds, self.byte_seconds, factor)

    def _moving(self, piece_count: int, total_bytes: int) -> float:
        return piece_count * self.piece_seconds + total_bytes * self.byte_seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which way to take, and the numbers that say so."""

    packed: bool
    nixl_seconds: float
    packed_seconds: float

    @property
    def choice(self) -> str:
        """For people."""
        taken, other = ("packed", "nixl") if self.packed else ("nixl", "packed")
        costs = {"packed": self.packed_seconds, "nixl": self.nixl_seconds}
        return f"{taken}: {costs[taken] * 1e3:.3g} ms expected, {other}: {costs[other] * 1e3:.3g} ms"


@dataclass(slots=True)
class PairCosts:
    """The two ways to read one source."""

    nixl: WayCost
    packed: WayCost

    def verdict(self, piece_count: int, total_bytes: int) -> Verdict:
        """Which way to read so many pieces that come to so many bytes."""
        nixl = self.nixl.seconds(piece_count, total_bytes)
        packed = self.packed.seconds(piece_count, total_bytes)
        return Verdict(packed < nixl, nixl, packed)

    def learn(self, piece_count: int, total_bytes: int, seconds: float, *, packed: bool) -> None:
        """Take a read that took so long into account."""
        if packed:
            self.packed = self.packed.learned(piece_count, total_bytes, seconds)
        else:
            self.nixl = self.nixl.learned(piece_count, total_bytes, seconds)
