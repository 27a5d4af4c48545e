"""``python -m kvferry_control --config FILE``: run one control process."""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence

import structlog
from prometheus_client import start_http_server

from kvferry import event_loop
from kvferry.core.errors import AddressInUse, KvferryError
from kvferry.ending import bound_end
from kvferry.logs import bind_identity, configure_logs
from kvferry.rpc.addresses import check_address, with_port
from kvferry_control.config import ControlConfig
from kvferry_control.config_reading import config_of, control_settings
from kvferry_control.process import ControlProcess

EXIT_REFUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until drained. Returns the exit status: 0, or 2 with one line on stderr that names what is wrong."""
    try:
        settings = control_settings(arguments, os.environ)
        config = config_of(settings)
        configure_logs(config.log.level, config.log.format)
        bind_identity(worker=config.worker.name)
        log = structlog.get_logger("kvferry.control")
        log.info("configuration", **settings.logged())
        for note in settings.notes:
            log.warning("configuration without effect", message=note)
        event_loop.run(_run(config, settings.ready_fd))
    except KvferryError as error:
        return _refused(error)
    except BaseExceptionGroup as group:
        refusal = group.subgroup(KvferryError)
        if refusal is None:
            raise
        return _refused(_first(refusal))
    return 0


def _refused(error: BaseException) -> int:
    sys.stderr.write(f"kvferry control: {error}\n")
    return EXIT_REFUSED


async def _run(config: ControlConfig, ready_fd: int | None) -> None:
    process = ControlProcess(config)
    metrics = _serve_metrics(config, process)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.signalled)

    def serving() -> None:
        # What lives as long as the process need not be looked at again and again: a full collection takes tens of ms.
        gc.collect()
        gc.freeze()
        if ready_fd is None:
            return
        ready = {
            "ready": True,
            "listen": process.listen,
            "engine_socket": config.worker.engine_socket,
            "metrics": metrics,
        }
        os.write(ready_fd, json.dumps(ready).encode() + b"\n")
        os.close(ready_fd)

    await process.run(serving, bound_end)


def _serve_metrics(config: ControlConfig, process: ControlProcess) -> str | None:
    if config.metrics is None:
        return None
    host, port = check_address("metrics.listen", config.metrics.listen)
    try:
        server, _thread = start_http_server(port, host.strip("[]"), registry=process.metrics.registry)
    except OSError as error:
        raise AddressInUse.of_field("metrics.listen", config.metrics.listen, str(error)) from error
    address = with_port(config.metrics.listen, server.server_port)
    structlog.get_logger("kvferry.control").info("metrics served", address=address)
    return address


def _first(group: BaseExceptionGroup[KvferryError]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


if __name__ == "__main__":
    sys.exit(main())
