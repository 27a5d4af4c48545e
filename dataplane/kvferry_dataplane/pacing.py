"""How closely to poll. Pure."""

from dataclasses import dataclass

_CLOSE_SECONDS = 0.02
_NEAR_SECONDS = 0.2


@dataclass(slots=True)
class Pacing:
    """Polls without a pause while something moves, then ever more slowly.

    The backends give no descriptor to wait on, so a pause is what bounds the cost of waiting for a peer that is stuck.
    """

    near_pause: float = 50e-6
    far_pause: float = 1e-3
    _moved_at: float = 0.0

    def pause(self, moved: bool, now: float) -> float:
        """Seconds to sleep before the next poll, given whether the last one saw anything move."""
        if moved:
            self._moved_at = now
        quiet = now - self._moved_at
        if quiet < _CLOSE_SECONDS:
            return 0.0
        return self.near_pause if quiet < _NEAR_SECONDS else self.far_pause
