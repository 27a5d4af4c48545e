"""Structured logs on stderr: JSON for machines, console on a terminal."""

import logging
import sys

import structlog

SECRET_KEYS = frozenset({"handle", "handle_key", "word", "lease_word", "password"})
"""Values under these keys are never written."""


def configure_logs(level: str = "info", form: str = "auto", **bound: object) -> None:
    """Set up structlog for this process; ``bound`` values stand in every line.

    ``level`` is debug, info, warning or error. ``form`` is json, console, or auto: console where stderr is a terminal.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer(sort_keys=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            hide_secrets,
            drop_nothing_said,
            *([] if console else [structlog.processors.format_exc_info]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**bound)


def hide_secrets(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Mask values that would let a reader of the log read KV."""
    for key in SECRET_KEYS & event.keys():
        event[key] = "***"
    return event


def drop_nothing_said(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Leave out fields that are None."""
    return {key: value for key, value in event.items() if value is not None}
