"""The bound on the end of a process: whatever is stuck on the way out, it ends.

To end means to wait for threads, some of which are inside libraries or the kernel. What they hold the kernel frees as
well, so nobody gains by a process that waits for them for ever.
"""

import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import structlog

EXIT_STUCK = 1
"""Exit status of a process that was stuck on its way out."""
ENDS_WITHIN_S = 20.0
"""From the moment that a process begins to end. It mostly takes a second; to give back a large pool takes longer."""
_UNHEARD_S = 1.0
"""So much later it ends without a line in its log: what is stuck keeps the interpreter from running."""
_CALLS_SHOWN = 3
_log = structlog.get_logger("kvferry.ending")
_begun = threading.Lock()


def bound_end(bound_s: float = ENDS_WITHIN_S) -> None:
    """From now on this process has so many seconds to end.

    After them it logs where each of its threads is and ends at once, with ``EXIT_STUCK``. Only the first call counts.
    """
    if not _begun.acquire(blocking=False):
        return
    # A thread of its own that needs no interpreter; it writes to standard error where the others are.
    faulthandler.dump_traceback_later(bound_s + _UNHEARD_S, exit=True)
    threading.Thread(target=_end_after, args=(bound_s,), name="kvferry-ending", daemon=True).start()


@asynccontextmanager
async def end_bounded(begin: Callable[[], None] = bound_end) -> AsyncIterator[None]:
    """Begin the end when the block is left, however it is."""
    try:
        yield
    finally:
        begin()


def _end_after(bound_s: float) -> None:
    # Nobody sets it: where the process ends in time, this thread ends with it.
    threading.Event().wait(bound_s)
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    del frames[threading.get_ident()]
    places = {names.get(ident, str(ident)): _place(frame) for ident, frame in frames.items()}
    _log.error("stuck at the end; what is held is left to the system", bound_s=bound_s, threads=places)
    os._exit(EXIT_STUCK)


def _place(frame: FrameType) -> str:
    """The innermost calls."""
    calls = traceback.extract_stack(frame)[-_CALLS_SHOWN:]
    return " > ".join(f"{call.name} ({Path(call.filename).name}:{call.lineno})" for call in calls)
