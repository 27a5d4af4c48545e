"""The two gRPC servers of control, TCP for routers and peers, a Unix socket for the engine; and the lanes of both."""

from collections.abc import Callable, Mapping, Sequence

from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvferry.core.errors import AddressInUse
from kvferry.rpc.addresses import with_port
from kvferry.rpc.health import SOCKET_SUFFIX, status_of
from kvferry.rpc.lanes import LANE_SOCKET_SUFFIX, LaneServer
from kvferry.rpc.options import server_options
from kvferry.rpc.socket_paths import claim_socket_path

STOP_GRACE_S = 0.5


class Servers:
    """Binds at once, so that a port that is taken is told before anything else is begun; serves when started."""

    def __init__(self, listen: str, engine_socket: str, on_lane_passed: Callable[[], None] = lambda: None) -> None:
        """``on_lane_passed`` is called whenever something passed a lane."""
        self.tcp = aio.server(options=server_options())
        self.uds = aio.server(options=server_options())
        self.health = health.aio.HealthServicer()
        for server in (self.tcp, self.uds):
            health_pb2_grpc.add_HealthServicer_to_server(self.health, server)
        self.listen = with_port(listen, _bind(self.tcp, "worker.listen", listen))
        path = claim_socket_path("worker.engine_socket", engine_socket)
        _bind(self.uds, "worker.engine_socket", f"unix:{path}")
        self.engine_socket = path
        self.health_socket = claim_socket_path("worker.engine_socket", engine_socket, suffix=SOCKET_SUFFIX)
        path.chmod(0o600)
        lane_path = claim_socket_path("worker.engine_socket", engine_socket, suffix=LANE_SOCKET_SUFFIX)
        self.lanes = LaneServer(lane_path, on_lane_passed)

    async def start(self, tcp_services: Sequence[str], uds_services: Sequence[str]) -> None:
        """Serve, with reflection for the named services."""
        own = (reflection.SERVICE_NAME, health.SERVICE_NAME)
        reflection.enable_server_reflection((*tcp_services, *own), self.tcp)
        reflection.enable_server_reflection((*uds_services, *own), self.uds)
        await self.lanes.start()
        await self.tcp.start()
        await self.uds.start()

    async def show_health(self, states: Mapping[str, bool]) -> None:
        """What the health service answers, by service."""
        for name, serving in states.items():
            await self.health.set(name, status_of(serving))

    async def stop(self) -> None:
        """Let calls finish for a moment, then end them; remove the socket. May be called twice."""
        await self.health.enter_graceful_shutdown()
        await self.tcp.stop(STOP_GRACE_S)
        await self.uds.stop(STOP_GRACE_S)
        await self.lanes.close()
        self.engine_socket.unlink(missing_ok=True)


def _bind(server: aio.Server, field: str, address: str) -> int:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressInUse.of_field(field, address, "cannot be bound; another process may listen there") from error
    if port == 0:
        raise AddressInUse.of_field(field, address, "cannot be bound; another process may listen there")
    return port
