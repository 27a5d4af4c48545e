"""A simulated control process: the real one, with servers on the simulated network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kvferry.core.errors import KvferryError
from kvferry.rpc.lanes import LANE_SOCKET_SUFFIX, LaneServer
from kvferry_control.config import ControlConfig
from kvferry_control.process import ControlProcess
from kvferry_control.servers import Servers
from tests.simulation.inbox import this_process
from tests.simulation.network import Network
from tests.simulation.rpc_server import SimServer

STOP_GRACE_S = 0.5


class SimServers(Servers):
    """The two servers of a control, without files, health checks and reflection."""

    def __init__(self, network: Network, listen: str, engine_socket: str) -> None:
        self.simulated = SimServer(network), SimServer(network)
        for server, address in zip(self.simulated, (listen, f"unix:{engine_socket}"), strict=True):
            server.add_insecure_port(address)
        self.tcp, self.uds = self.simulated  # type: ignore[assignment]
        self.listen = listen
        self.engine_socket = Path(engine_socket)
        self.lanes = LaneServer(Path(f"{engine_socket}{LANE_SOCKET_SUFFIX}"))
        self.health_socket = Path(f"{engine_socket}.health")

    async def start(self, tcp_services: Sequence[str], uds_services: Sequence[str]) -> None:
        """Serve."""
        for server in self.simulated:
            await server.start()

    async def show_health(self, states: Mapping[str, bool]) -> None:
        """Nobody asks."""

    async def stop(self) -> None:
        """Serve no more."""
        for server in self.simulated:
            await server.stop(STOP_GRACE_S)


class ControlLife:
    """One life of a control. To be made by its process. ``why`` tells how it ended, if it ended by itself."""

    def __init__(self, network: Network, config: ControlConfig) -> None:
        self.process = this_process()
        self.why = ""
        servers = SimServers(network, config.worker.listen, config.worker.engine_socket)
        self.control = ControlProcess(config, servers)

    @property
    def begun(self) -> bool:
        """Whether its parts are made."""
        return hasattr(self.control, "_parts")

    async def run(self) -> None:
        """Serve until killed, or until a typed error ends the process."""
        try:
            await self.control.run(lambda: None)
        except* KvferryError as errors:
            self.why = str(errors.exceptions[0])
