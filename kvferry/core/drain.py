"""How long until what is outstanding is done, judged by how fast the like of it went. Pure."""

HALF_LIFE_S = 10.0
RETRY_S_MIN = 0.05
RETRY_S_MAX = 30.0


class DrainMeter:
    """Measures a rate over the time in which there was something to do; what is older than ``HALF_LIFE_S`` counts half.

    The unit of amounts is the caller's: bytes, or things. Times are in seconds, on a clock that only grows.
    """

    def __init__(self) -> None:
        self._amount = 0.0
        self._busy_s = 0.0
        self._now = 0.0

    def advance(self, now: float, *, busy: bool) -> None:
        """Let time pass until ``now``; ``busy``: whether anything was outstanding since the last call."""
        if busy and now > self._now:
            passed = now - self._now
            fading = 0.5 ** (passed / HALF_LIFE_S)
            self._amount *= fading
            self._busy_s = self._busy_s * fading + passed
        self._now = max(now, self._now)

    def done(self, amount: float) -> None:
        """So much was done just now."""
        self._amount += amount

    def retry_after_s(self, outstanding: float) -> float:
        """Seconds until ``outstanding`` is done, within ``RETRY_S_MIN`` and ``RETRY_S_MAX``.

        Before anything was ever done it is as long as there has been something to do: nobody knows better then.
        """
        expected = self._busy_s * (outstanding / self._amount if self._amount > 0 else 1.0)
        return min(max(expected, RETRY_S_MIN), RETRY_S_MAX)
