"""Which of two ways to read a plan takes less time. Pure.

A way costs so much for every request, every piece and every byte. What is assumed or measured at first then follows
what reads really took. A way that a pair has never taken is tried once where it may be the better one.
"""

from dataclasses import dataclass

_FORGETTING = 0.3
"""Weight of the newest read."""
_FACTOR_MIN, _FACTOR_MAX = 1 / 16, 16.0
_LEARN_BYTES_MIN = 1 << 20
"""Shorter reads say more of the machine's moods than of the way."""
_TRY_FACTOR = 3.0
"""A way is tried if it is expected to take at most this many times what the better one takes."""


@dataclass(frozen=True, slots=True)
class WayCost:
    """What one way of reading costs."""

    request_seconds: float
    """Before the first byte."""
    piece_seconds: float
    byte_seconds: float
    factor: float = 1.0
    """What reads have taken, over what they were first expected to take."""
    is_measured: bool = False
    """Whether a read has taken this way."""

    def seconds(self, piece_count: int, total_bytes: int) -> float:
        """How long a plan is expected to take."""
        return self.request_seconds + self.factor * self._moving(piece_count, total_bytes)

    def learned(self, piece_count: int, total_bytes: int, seconds: float) -> "WayCost":
        """The cost after a read that took so long."""
        if total_bytes < _LEARN_BYTES_MIN:
            return self
        seen = max(seconds - self.request_seconds, 0.0) / self._moving(piece_count, total_bytes)
        seen = min(max(seen, _FACTOR_MIN), _FACTOR_MAX)
        factor = (1 - _FORGETTING) * self.factor + _FORGETTING * seen if self.is_measured else seen
        return WayCost(self.request_seconds, self.piece_seconds, self.byte_seconds, factor, is_measured=True)

    def _moving(self, piece_count: int, total_bytes: int) -> float:
        return piece_count * self.piece_seconds + total_bytes * self.byte_seconds


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which way to take, and the numbers that say so."""

    packed: bool
    choice: str
    """For people."""


@dataclass(slots=True)
class PairCosts:
    """The two ways to read one source."""

    nixl: WayCost
    packed: WayCost

    def verdict(self, piece_count: int, total_bytes: int, method: str = "nixl") -> Verdict:
        """Which way to read so many pieces that come to so many bytes; ``method`` is what the transport's is called."""
        seconds = {
            method: self.nixl.seconds(piece_count, total_bytes),
            "packed": self.packed.seconds(piece_count, total_bytes),
        }
        taken, other = ("packed", method) if seconds["packed"] < seconds[method] else (method, "packed")
        if self._is_worth_a_try(other, total_bytes) and seconds[other] <= _TRY_FACTOR * seconds[taken]:
            taken, other, why = other, taken, " (tried for the first time)"
        else:
            why = ""
        choice = f"{piece_count} pieces: {taken} {seconds[taken] * 1e3:.3g} ms, {other} {seconds[other] * 1e3:.3g} ms"
        return Verdict(taken == "packed", choice + why)

    def learn(self, piece_count: int, total_bytes: int, seconds: float, *, packed: bool) -> None:
        """Take a read that took so long into account."""
        if packed:
            self.packed = self.packed.learned(piece_count, total_bytes, seconds)
        else:
            self.nixl = self.nixl.learned(piece_count, total_bytes, seconds)

    def _is_worth_a_try(self, way: str, total_bytes: int) -> bool:
        cost = self.packed if way == "packed" else self.nixl
        return not cost.is_measured and total_bytes >= _LEARN_BYTES_MIN
