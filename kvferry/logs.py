"""Structured logs on standard error: JSON for machines, console on a terminal."""

import logging
import sys
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, Processor

FORMATS = ("auto", "json", "console")
SECRET_KEYS = frozenset({"handle", "handle_key", "word", "lease_word", "password"})
"""Values under these keys are never written."""

_identity: dict[str, object] = {}


def bind_identity(**values: object) -> None:
    """From now on, every line of this process carries these values, beside those bound before."""
    _identity.update(values)


def configure_logs(level: str = "info", form: str = "auto") -> None:
    """Send structlog's and the standard library's lines to standard error in one form.

    ``level`` is debug, info, warning or error. ``form`` is json, console, or auto: console where that is a terminal.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_identity,
        _add_unwritten,
        _hide_secrets,
        _drop_nothing_said,
    ]
    # Tracebacks without local variables: those may hold lease words and keys.
    renderers: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _standard_error)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(cast("TextIO", _standard_error))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


class _StandardError:
    """Standard error as it is at the time of a line: who exchanged it may have closed the one that was there before.

    A full disk, or a reader of a pipe that has gone, must not fail what logs. Lines that could not be written are
    counted, and the next one that can be says how many.
    """

    def __init__(self) -> None:
        self.unwritten_count = 0

    def write(self, text: str) -> int:
        """Write there, if that is possible."""
        try:
            written = sys.stderr.write(text)
            sys.stderr.flush()
        except OSError:
            self.unwritten_count += 1
            return 0
        self.unwritten_count = 0
        return written

    def flush(self) -> None:
        """Nothing: every write was flushed."""


_standard_error = _StandardError()


def _add_unwritten(_logger: object, _method: str, event: EventDict) -> EventDict:
    if _standard_error.unwritten_count:
        event["unwritten_lines"] = _standard_error.unwritten_count
    return event


def _add_identity(_logger: object, _method: str, event: EventDict) -> EventDict:
    for name, value in _identity.items():
        event.setdefault(name, value)
    return event


def _hide_secrets(_logger: object, _method: str, event: EventDict) -> EventDict:
    for key in SECRET_KEYS & event.keys():
        event[key] = "***"
    return event


def _drop_nothing_said(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {key: value for key, value in event.items() if value is not None}
