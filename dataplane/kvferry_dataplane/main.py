"""`python -m kvferry_dataplane`: the command line of the data plane."""

import argparse
import asyncio
import sys
import time

import structlog

from kvferry.core.backends import Backend, NixlBackend
from kvferry.core.errors import InternalError, KvferryError
from kvferry.logs import FORMATS, configure_logs
from kvferry_dataplane.config import LOG_LEVELS, config_from_flags
from kvferry_dataplane.paths import PackWire, PathRule

EXIT_DEFECT = 1
EXIT_REFUSED = 2


def main(arguments: list[str] | None = None) -> int:
    """Run a data plane; returns the exit status."""
    started_at = time.monotonic()
    flags = _parser().parse_args(arguments)
    try:
        config = config_from_flags(flags)
        configure_logs(config.log_level, config.log_format)
        # Only now: the imports of the process take longer than a refused flag should.
        from kvferry_dataplane.process import DataPlaneProcess  # noqa: PLC0415

        async def run() -> None:
            await DataPlaneProcess(config, started_at).run()

        asyncio.run(run())
    except KvferryError as error:
        sys.stderr.write(f"kvferry dataplane: {error.reason.value}: {error.message}\n")
        return EXIT_DEFECT if isinstance(error, InternalError) else EXIT_REFUSED
    except Exception:
        structlog.get_logger("kvferry.dataplane").exception("defect")
        return EXIT_DEFECT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvferry dataplane", description="Owns a pool of KV memory, lets peers read it, and reads theirs."
    )
    add = parser.add_argument
    add("--device", default="cpu", help="cpu or cuda:N (default: cpu)")
    add("--pool-bytes", required=True, metavar="SIZE", help="size of the pool, for example 1GiB")
    add("--socket", required=True, metavar="PATH", help="Unix socket for control; engines use PATH.pool")
    add("--metrics-listen", metavar="HOST:PORT", help="serve Prometheus metrics here (default: not at all)")
    add("--log-format", default="auto", metavar="FORMAT", help=f"{', '.join(FORMATS)} (default: auto)")
    add("--log-level", default="info", metavar="LEVEL", help=f"{', '.join(LOG_LEVELS)} (default: info)")
    add("--max-leases", default="16384", metavar="N", help="leases that can hold at a time (default: 16384)")
    add("--max-reads", default="4096", metavar="N", help="reads queued or running, of one source 4/5 (default: 4096)")
    add(
        "--max-outstanding-bytes",
        default="1024TiB",
        metavar="SIZE",
        help="bytes of queued and running reads (default: no bound but the pool)",
    )
    _add_paths(parser)
    add("--copy-threads", default="auto", metavar="N", help="threads that copy between pools of host memory")
    add("--sm-count", default="all", metavar="N", help="GPU multiprocessors that copies may take (default: all)")
    add("--checksums", default="off", metavar="SHARE", help="off, full, sampled:N: sum what is published")
    add(
        "--drain-timeout",
        default="90",
        metavar="SECONDS",
        help="after SIGTERM, stay so long for control, leases and reads; more than control's (default: 90; 0: end now)",
    )
    add(
        "--stall-timeout",
        default="10",
        metavar="SECONDS",
        help="a thread that does not answer for so long is stuck: the health service says NOT_SERVING (default: 10)",
    )
    add("--ready-fd", metavar="N", help="descriptor that gets the line `ready` once the process serves")
    return parser


def _add_paths(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--backend",
        default="DEFAULT",
        metavar="NAME",
        help=f"{', '.join(Backend)}: what moves bytes between hosts (default: DEFAULT, which is NIXL with UCX)",
    )
    add("--nixl-backend", metavar="NAME", help=f"{', '.join(NixlBackend)}: what NIXL stands on (default: UCX)")
    add("--path", default="auto", metavar="PATH", help=f"{', '.join(PathRule)}: force one (default: auto)")
    add(
        "--same-host",
        default="fused",
        metavar="HOW",
        help="fused: map pools of this host and copy; backend: never map them (default: fused)",
    )
    add(
        "--pack-wire",
        default="auto",
        metavar="HOW",
        help=f"{', '.join(PackWire)}: how packed chunks travel (default: auto, nixl where there is RDMA)",
    )
    add("--pack-listen", metavar="HOST:PORT", help="pack small pieces for readers of other hosts here (default: not)")
    add("--pack-advertise", metavar="HOST:PORT", help="where readers find that (default: as in --pack-listen)")
    add(
        "--pack-congestion",
        default="auto",
        metavar="NAME",
        help="congestion control for packed bytes (default: auto, the system's, or cubic in place of bbr)",
    )
