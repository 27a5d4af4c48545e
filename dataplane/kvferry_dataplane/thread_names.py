"""Names of threads as the system's tools show them."""

import threading
from pathlib import Path

import structlog

_CHARS_MAX = 15
"""The kernel's limit."""
_log = structlog.get_logger("kvferry.dataplane")


def name_thread(name: str) -> None:
    """Let `top -H`, debuggers and the like show the calling thread under this name; where /proc allows it."""
    try:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:_CHARS_MAX])
    except OSError as error:
        _log.debug("thread not named", thread=name, error=str(error))
