"""Where the clients log."""

import logging

import structlog

NAME = "kvferry.sdk"


def sdk_log(**bound: object) -> structlog.typing.FilteringBoundLogger:
    """A logger with ``bound`` values: structlog's where the program has set it up, else standard logging's.

    Left to itself structlog writes to stdout, which belongs to the program.
    """
    if structlog.is_configured():
        log: structlog.typing.FilteringBoundLogger = structlog.get_logger(NAME)
    else:
        log = structlog.wrap_logger(
            logging.getLogger(NAME),
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.processors.KeyValueRenderer(key_order=["event"]),
            ],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
    return log.bind(**bound)
