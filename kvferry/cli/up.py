"""``kvferry up``: etcd and one worker on this machine."""

from dataclasses import dataclass
from pathlib import Path

from kvferry.cli.figures import parse_size
from kvferry.cli.terminal import console, error_console, print_json, table
from kvferry.cli.transports import WorkerFlags
from kvferry.core.errors import ConfigInvalid
from kvferry.launch.child import Child
from kvferry.launch.cluster import LocalCluster
from kvferry.launch.concurrently import all_of
from kvferry.launch.worker import LocalWorker, WorkerSpec

ROLES = ("prefill", "decode", "both")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What is started. ``pool`` is a size such as 256MiB; ``directory`` None takes a temporary one."""

    name: str
    role: str
    ranks: int
    device: str
    pool: str
    listen: str
    engine: bool
    directory: Path | None
    flags: WorkerFlags

    def spec(self) -> WorkerSpec:
        """The worker. Raises ConfigInvalid for a wrong role or size."""
        if self.role not in ROLES:
            raise ConfigInvalid.of_field("role", self.role, f"must be one of {', '.join(ROLES)}")
        return WorkerSpec(
            name=self.name,
            role=self.role,
            ranks=self.ranks,
            device=self.device,
            pool_bytes=parse_size("pool", self.pool),
            listen=self.listen,
            data_plane_flags=self.flags.data_plane,
            control_flags=self.flags.control,
        )


async def up(options: UpOptions, *, json_output: bool) -> None:
    """Run until cancelled or until a process ends.

    Raises:
        ConfigInvalid: an option is wrong.
        ProcessError: a process failed to start, or ended.
    """
    spec = options.spec()
    async with LocalCluster(directory=options.directory) as cluster:
        with error_console().status("starting the data planes and the control"):
            worker = await cluster.start_worker(spec)
            if options.engine:
                await worker.start_engine(["--device", spec.device.partition(":")[0]])
        if json_output:
            print_json(_description(cluster, worker, options))
        else:
            _show(_description(cluster, worker, options))
        await all_of(_fail_at_end(child) for child in worker.children)


async def _fail_at_end(child: Child) -> None:
    await child.wait()
    child.check_running()


def _description(cluster: LocalCluster, worker: LocalWorker, options: UpOptions) -> dict[str, object]:
    return {
        "worker": worker.name,
        "endpoint": worker.endpoint,
        "engine_socket": str(worker.engine_socket),
        "rank_sockets": [str(path) for path in worker.rank_sockets],
        "metrics": worker.metrics_address,
        "engine": worker.engine_address if options.engine else None,
        "etcd": cluster.etcd.endpoint,
        "logs": str(cluster.directory),
        "pids": {child.name: child.pid for child in worker.children},
    }


def _show(description: dict[str, object]) -> None:
    rows = []
    for key, value in description.items():
        match value:
            case None:
                continue
            case list():
                rows.append((key, "\n".join(map(str, value))))
            case dict():
                rows.append((key, "\n".join(f"{name} {pid}" for name, pid in value.items())))
            case _:
                rows.append((key, str(value)))
    out = console()
    out.print(table("kvferry is up; Ctrl-C ends it", ("what", "where"), rows))
    out.print(f"try: kvferry workers --endpoint {description['endpoint']}")
