"""Structured log lines on standard error, each bound to the worker, rank and incarnation that this process serves."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_identity: dict[str, object] = {}


def bind_identity(**values: object) -> None:
    """From now on, every line carries these values."""
    _identity.clear()
    _identity.update(values)


def _add_identity(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in _identity.items():
        event.setdefault(name, value)
    return event


def configure_logs(log_format: str, level: str) -> None:
    """Send structlog's and the standard library's lines to standard error in one format."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_identity,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    # Tracebacks without local variables: those may hold lease words and keys.
    exceptions: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info] if log_format == "json" else []
    )
    numeric = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *exceptions, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *exceptions, renderer],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
