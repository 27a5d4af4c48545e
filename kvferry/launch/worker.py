"""A worker on this machine: its data planes, its control and, if wanted, its reference engine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvferry.core.errors import NotReady
from kvferry.launch.child import Child
from kvferry.launch.concurrently import all_of
from kvferry.launch.control_config import ControlConfig, Section
from kvferry.launch.metrics import read_metric
from kvferry.launch.namespaces import Namespace

MIB = 1024 * 1024
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a local worker is: ``role`` is prefill, decode or both; every rank has its pool on ``device``."""

    name: str
    role: str
    ranks: int = 1
    pipeline_parallel: int = 1
    """Stages that the reference engine divides its layers over; ``ranks`` is a multiple of it."""
    device: str = "cpu"
    """Of several, as in ``cuda:0,cuda:1``, ranks take one after the other."""
    pool_bytes: int = 64 * MIB
    listen: str = "127.0.0.1:0"
    namespace: Namespace | None = None
    """Where all of its processes run; ``listen`` is then an address in there, and so are those of its metrics."""
    data_plane_module: str = "kvferry_dataplane"
    """What is run as data plane; tests run it with a part replaced."""
    data_plane_flags: tuple[str, ...] = ()
    """Beyond those that follow from the fields here."""
    data_plane_environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the data planes."""
    control_flags: tuple[str, ...] = ()
    """Beyond the file that follows from the fields here."""
    pack_listen: str = ""
    """Where its data planes pack for readers, for example `127.0.0.1:0`; empty: nowhere, since workers of one machine
    need it only where the packed path itself is tried."""
    lease_ttl_s: int = 5
    metrics: bool = True
    log_level: str = "info"
    stall_s: float = 10.0
    """After how long without a sign of life a thread makes its process unhealthy."""
    drain_timeout_s: float = 0.0
    """How long control and data planes wait for what is left when they are told to end; 0: not at all."""
    limits: Section = field(default_factory=dict)
    """Of its control, where they are not the usual ones."""
    transfers: Section = field(default_factory=dict)
    """What its pulls do that do not say it themselves."""

    def device_of(self, rank: int) -> str:
        """Where a rank has its pool."""
        devices = self.device.split(",")
        return devices[rank % len(devices)]


class LocalWorker:
    """Processes of one worker; a single process can be killed and started again, for tests.

    ``directory`` gets sockets, configuration and logs.
    """

    def __init__(self, spec: WorkerSpec, directory: Path, etcd_endpoints: Sequence[str], etcd_prefix: str) -> None:
        self.spec = spec
        self.directory = directory
        self.engine_socket = directory / f"{spec.name}.engine.sock"
        self.rank_sockets = tuple(directory / f"{spec.name}.dp{rank}.sock" for rank in range(spec.ranks))
        self.data_planes: dict[int, Child] = {}
        self._control: Child | None = None
        self._engine: Child | None = None
        self._etcd_endpoints = tuple(etcd_endpoints)
        self._etcd_prefix = etcd_prefix
        self._listen = spec.listen

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.spec.name

    @property
    def control(self) -> Child:
        """The control process. Raises NotReady before it was started."""
        return _started(self._control, f"control of {self.name}")

    @property
    def engine(self) -> Child:
        """The reference engine's process. Raises NotReady before it was started."""
        return _started(self._engine, f"engine of {self.name}")

    @property
    def endpoint(self) -> str:
        """host:port of the control."""
        return str(self.control.ready["listen"])

    @property
    def metrics_address(self) -> str:
        """host:port of the control's metrics."""
        return str(self.control.ready["metrics"])

    @property
    def engine_address(self) -> str:
        """host:port of the reference engine."""
        return str(self.engine.ready["listen"])

    @property
    def children(self) -> tuple[Child, ...]:
        """All that were started, in the order in which they are to be stopped."""
        return (*self._upper_children, *self.data_planes.values())

    @property
    def _host(self) -> str:
        return LOOPBACK if self.spec.namespace is None else self.spec.namespace.address

    @property
    def _upper_children(self) -> tuple[Child, ...]:
        return tuple(child for child in (self._engine, self._control) if child is not None)

    async def start(self) -> None:
        """Start the data planes together, then the control.

        Raises:
            ProcessError: one of them failed; the others are left to :meth:`stop`.
        """
        await all_of(self.start_data_plane(rank) for rank in range(self.spec.ranks))
        await self.start_control()

    async def start_data_plane(self, rank: int) -> Child:
        """Start, or start again, the data plane of ``rank``."""
        device = self.spec.device_of(rank)
        command = ["-m", self.spec.data_plane_module, "--device", device]
        command += ["--pool-bytes", str(self.spec.pool_bytes), "--socket", str(self.rank_sockets[rank])]
        if self.spec.metrics:
            command += ["--metrics-listen", f"{self._host}:0"]
        if self.spec.pack_listen and device == "cpu":
            command += ["--pack-listen", self.spec.pack_listen]
        command += ["--drain-timeout", str(self.spec.drain_timeout_s), "--stall-timeout", str(self.spec.stall_s)]
        command += ["--log-format", "json", *self.spec.data_plane_flags]
        child = await self._start(f"{self.name}.dp{rank}", command, self.spec.data_plane_environment)
        self.data_planes[rank] = child
        return child

    async def start_control(self) -> Child:
        """Start the control, or start it again under the address that it had."""
        path = self.directory / f"{self.name}.toml"
        config = self._control_config()
        path.write_text(config.to_toml(), encoding="utf-8")
        command = ["-m", "kvferry_control", "--config", str(path), *self.spec.control_flags]
        # What is decided here goes before the environment, which would go before the file.
        environment = dict.fromkeys(config.variables(), "")
        self._control = await self._start(f"{self.name}.control", command, environment)
        self._listen = self.endpoint
        return self._control

    async def start_engine(self, arguments: Sequence[str] = ()) -> Child:
        """Start, or start again, the reference engine, with ``arguments`` beyond its sockets and degrees."""
        stages = self.spec.pipeline_parallel
        command = ["-m", "kvferry.reference_engine", "--control-socket", str(self.engine_socket)]
        command += ["--listen", f"{self._host}:0", "--tensor-parallel", str(self.spec.ranks // stages)]
        command += ["--pipeline-parallel", str(stages), *arguments]
        self._engine = await self._start(f"{self.name}.engine", command)
        return self._engine

    def data_plane_metrics_address(self, rank: int) -> str:
        """host:port of a data plane's metrics, which it says in its log.

        Raises:
            NotReady: it serves none.
        """
        for line in self.data_planes[rank].log_lines():
            if line.startswith("{") and (port := json.loads(line).get("metrics_port")) is not None:
                return f"{self._host}:{port}"
        raise NotReady(f"data plane {rank} of {self.name} serves no metrics")

    async def live_leases(self) -> int:
        """Leases that the worker's data planes hold. Raises NotReady if one does not answer."""
        addresses = [self.data_plane_metrics_address(rank) for rank in self.data_planes]
        return int(sum(await all_of(read_metric(a, "kvferry_dataplane_leases_live") for a in addresses)))

    async def stop(self) -> None:
        """End engine, control and data planes, in this order."""
        for child in self._upper_children:
            await child.stop()
        await all_of(child.stop() for child in self.data_planes.values())

    def check_running(self) -> None:
        """Raise ProcessEnded if any of the processes has ended."""
        for child in self.children:
            child.check_running()

    async def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        namespace = self.spec.namespace
        launcher = () if namespace is None else namespace.launcher
        return await Child.start(
            name, command, self.directory / f"{name}.log", environment=environment, launcher=launcher
        )

    def _control_config(self) -> ControlConfig:
        return ControlConfig(
            name=self.name,
            role=self.spec.role,
            listen=self._listen,
            engine_socket=self.engine_socket,
            rank_sockets=self.rank_sockets,
            etcd_endpoints=self._etcd_endpoints,
            etcd_prefix=self._etcd_prefix,
            lease_ttl_s=self.spec.lease_ttl_s,
            metrics_listen=f"{self._host}:0" if self.spec.metrics else None,
            log_level=self.spec.log_level,
            drain_timeout_s=self.spec.drain_timeout_s,
            stall_s=self.spec.stall_s,
            limits=self.spec.limits,
            transfers=self.spec.transfers,
        )


def _started(child: Child | None, what: str) -> Child:
    if child is None:
        raise NotReady(f"{what} was not started")
    return child
