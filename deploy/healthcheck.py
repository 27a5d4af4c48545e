"""The image's health check: asks the gRPC health service at KVFERRY_HEALTH. Exit status 0 if it serves, else 1."""

# ruff: noqa: INP001 - run by path, in no package
import os
import sys

import grpc
from grpc_health.v1 import health_pb2

TIMEOUT_S = 4.0
ENVIRONMENT = "KVFERRY_HEALTH"


def complaint(target: str) -> str | None:
    """What is wrong with the process at ``target``, ``host:port`` or ``unix:path``; None if it serves."""
    with grpc.insecure_channel(target) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            health_pb2.HealthCheckRequest.SerializeToString,
            health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            return f"{target}: {error}"
    serving = health_pb2.HealthCheckResponse.SERVING
    return None if answer.status == serving else f"{target} does not serve: status {answer.status}"


def main() -> int:
    """Ask once."""
    target = os.environ.get(ENVIRONMENT)
    found = complaint(target) if target else f"{ENVIRONMENT} is not set: give host:port, or unix: and a socket's path"
    if found is not None:
        sys.stderr.write(f"{found}\n")
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main())
