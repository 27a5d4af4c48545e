"""``kvferry health``: what container health checks run."""

from grpc import aio
from grpc_health.v1 import health_pb2

from kvferry.cli.terminal import console, print_json
from kvferry.core.errors import NotReady
from kvferry.rpc.health import check_health

_SERVING = health_pb2.HealthCheckResponse.SERVING


async def health(endpoint: str, service: str, timeout_s: float, *, json_output: bool) -> None:
    """Ask once.

    Raises:
        NotReady: it does not serve, has no such part, or did not answer in time.
    """
    async with aio.insecure_channel(endpoint) as channel:
        try:
            answer = await check_health(channel, service, timeout_s)
        except aio.AioRpcError as error:
            why = f"{endpoint}: {error.code().name}: {error.details()}"
            raise NotReady(why, metadata={"endpoint": endpoint}) from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer)
    if json_output:
        print_json({"endpoint": endpoint, "service": service, "status": status})
    elif answer == _SERVING:
        console().print(status)
    if answer != _SERVING:
        raise NotReady(f"{endpoint}: {service or 'the process'} is {status}", metadata={"endpoint": endpoint})
