"""The log line of a read that is over."""

import structlog

from kvferry_dataplane.reads.request import ReadOutcome

_log = structlog.get_logger("kvferry.dataplane")


def log_read(outcome: ReadOutcome) -> None:
    """Say how it ended, and what it took."""
    log = _log.bind(transfer=outcome.transfer)
    main = outcome.main
    figures = {
        "path": main.path.value if main is not None else "",
        "backend": main.backend if main is not None else "",
        "choice": main.choice if main is not None else "",
        "received_bytes": outcome.received_bytes,
        "descriptor_count": outcome.descriptor_count,
        "queue_ms": round(outcome.queue_seconds * 1e3, 3),
        "read_ms": round(outcome.read_seconds * 1e3, 3),
        "verify_ms": round(outcome.verify_seconds * 1e3, 3),
        "compared_bytes": outcome.compared_bytes,
        "checksum_ms": round(outcome.checksum_seconds * 1e3, 3),
    }
    if outcome.failure is None:
        log.info("read succeeded", **figures)
    else:
        log.warning("read failed", reason=outcome.failure.reason.value, message=outcome.failure.message, **figures)
