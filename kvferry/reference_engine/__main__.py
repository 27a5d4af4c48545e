"""``python -m kvferry.reference_engine``."""

import asyncio
import sys

from kvferry.core.errors import ConfigInvalid, KvferryError
from kvferry.logs import configure_logs
from kvferry.reference_engine.server import serve
from kvferry.reference_engine.settings import settings_from


def main() -> int:
    """Exit status 0 after a signal, 1 for a failure, 2 for wrong configuration; one line on stderr says which."""
    try:
        settings = settings_from(None)
        configure_logs(settings.log_level, settings.log_format)
        asyncio.run(serve(settings))
    except* KvferryError as failures:
        error: BaseException = failures
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        sys.stderr.write(f"error: {error}\n")
        status = 2 if isinstance(error, ConfigInvalid) else 1
    else:
        status = 0
    return status


sys.exit(main())
