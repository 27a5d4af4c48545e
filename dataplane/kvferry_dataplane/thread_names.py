"""Names of threads as the system's tools show them."""

import threading
from pathlib import Path

_CHARS_MAX = 15
"""The kernel's limit."""


def name_thread(name: str) -> None:
    """Let `top -H`, debuggers and the like show the calling thread under this name."""
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:_CHARS_MAX])
