"""A switch that breaks the promise that no byte comes late, so that tests can show that they would notice.

It is for tests of kvferry alone: with it, an engine's memory is written to after it has been handed back.
"""

from collections.abc import Mapping

import structlog

SKIP_ROLLOVER = "KVFERRY_UNSAFE_FOR_TESTS_SKIP_ROLLOVER"
CONFIRMATION = "let-late-bytes-corrupt-memory"
_log = structlog.get_logger("kvferry.dataplane.reads")


def skips_rollover(environment: Mapping[str, str]) -> bool:
    """Whether agents shall not be given up for reads that do not end: only where the variable has this one value."""
    value = environment.get(SKIP_ROLLOVER)
    if value is None:
        return False
    if value != CONFIRMATION:
        _log.error("UNSAFE switch ignored: it has another value than the one that means it", variable=SKIP_ROLLOVER)
        return False
    _log.error(
        "UNSAFE: reads that do not end are said to have ended, and write to memory that was handed back",
        variable=SKIP_ROLLOVER,
    )
    return True
