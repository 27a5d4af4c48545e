"""What can go wrong with a child process."""

import re
import signal
from typing import Self

from kvferry.core.errors import OperatorError
from kvferry.core.reasons import Reason

_REASON_IN_LOG = re.compile(r"\b(" + "|".join(Reason) + r")\b")


class ProcessError(OperatorError):
    """A child process did not do what it was started for.

    ``log_tail`` holds the last lines that it wrote; a traceback shows them as a note.
    """

    default_reason = Reason.INTERNAL
    log_tail: str = ""

    @classmethod
    def of_process(cls, name: str, what: str, log_tail: str, reason: Reason | None = None) -> Self:
        """An error about process ``name``; its message ends with the last line of its log."""
        lines = log_tail.splitlines()
        said = last_words(log_tail)
        last = f": {said}" if said else ", and it wrote no log"
        error = cls(f"{name} {what}{last}", reason=reason, metadata={"process": name})
        error.log_tail = log_tail
        if len(lines) > 1:
            error.add_note(f"last log lines of {name}:\n{log_tail}")
        return error


class ProcessEnded(ProcessError):
    """The process ended when it should have run. ``reason`` is its own, if its last line names one."""

    @classmethod
    def of_status(cls, name: str, status: int, log_tail: str) -> Self:
        """An error about a process that ended with ``status``, negative for a signal."""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        named = _REASON_IN_LOG.search(last_words(log_tail))
        return cls.of_process(name, f"ended with {how}", log_tail, Reason(named[1]) if named else None)


class ProcessNotReady(ProcessError):
    """The process runs but did not say in time that it serves."""

    default_reason = Reason.DEADLINE_EXCEEDED


def last_words(log_tail: str) -> str:
    """The last line that says something, without the frame that Python draws around groups of exceptions."""
    for line in reversed(log_tail.splitlines()):
        words = line.strip(" |+-")
        if words:
            return words
    return ""
