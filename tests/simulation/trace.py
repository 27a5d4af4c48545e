"""What happened in a run, in words: kept only where somebody wants to read it."""

from collections.abc import Callable


class Trace:
    """Lines with the virtual time. ``clock`` gives it."""

    def __init__(self, write: Callable[[str], None] | None = None) -> None:
        self.clock: Callable[[], float] = lambda: 0.0
        self._write = write

    @property
    def wanted(self) -> bool:
        """Whether anybody reads it."""
        return self._write is not None

    def say(self, who: str, what: str, **details: object) -> None:
        """Add a line."""
        if self._write is not None:
            told = " ".join(f"{key}={value}" for key, value in details.items())
            self._write(f"{self.clock():10.6f} {who:12} {what} {told}".rstrip())
