"""`python -m kvferry_dataplane`: the command line of the data plane."""

import os
import sys
import time

import structlog

from kvferry import event_loop
from kvferry.core.errors import InternalError, KvferryError
from kvferry.logs import configure_logs
from kvferry_dataplane.config_reading import config_of, data_plane_settings

EXIT_DEFECT = 1
EXIT_REFUSED = 2


def main(arguments: list[str] | None = None) -> int:
    """Run a data plane; returns the exit status."""
    started_at = time.monotonic()
    try:
        settings = data_plane_settings(arguments, os.environ)
        config = config_of(settings)
        configure_logs(config.log_level, config.log_format)
        log = structlog.get_logger("kvferry.dataplane")
        log.info("configuration", transport=config.transport.value, **settings.logged())
        for note in settings.notes:
            log.warning("configuration without effect", message=note)
        # Only now: the imports of the process take longer than a refused flag should.
        from kvferry_dataplane.process import DataPlaneProcess  # noqa: PLC0415

        async def run() -> None:
            await DataPlaneProcess(config, started_at).run()

        event_loop.run(run())
    except KvferryError as error:
        sys.stderr.write(f"kvferry dataplane: {error.reason.value}: {error.message}\n")
        return EXIT_DEFECT if isinstance(error, InternalError) else EXIT_REFUSED
    except Exception:
        structlog.get_logger("kvferry.dataplane").exception("defect")
        return EXIT_DEFECT
    return 0
