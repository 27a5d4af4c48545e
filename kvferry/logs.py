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
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _StandardError())),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(cast("TextIO", _StandardError()))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


class _StandardError:
    """Standard error as it is at the time of a line: who exchanged it may have closed the one that was there before."""

    def write(self, text: str) -> int:
        """Write there."""
        return sys.stderr.write(text)

    def flush(self) -> None:
        """Flush it."""
        sys.stderr.flush()


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
