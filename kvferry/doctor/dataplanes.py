"""The data planes of the worker whose control's configuration is given: whether they answer, and what they run with.

They are asked one unary question, which changes nothing and takes no session away.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from grpc import aio

from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.dataplane.v1.dataplane_pb2_grpc import DataPlaneServiceStub
from kvferry.device.descriptors import peer_of
from kvferry.doctor.findings import Finding, Value, broken, ok, slow
from kvferry.rpc.options import channel_options

CHECK = "dataplane"
_TIMEOUT_S = 2.0
_LIMITING = ("UCX_TLS", "UCX_NET_DEVICES", "UCX_SHM_DEVICES")


@dataclass(frozen=True, slots=True)
class DataPlane:
    """What one said."""

    rank: int
    path: str
    version: str
    transport: str
    device: str
    pool_bytes: int
    huge_page_bytes: int
    settings: dict[str, str]
    """Those of the transport's settings that came from its environment."""
    process_is_visible: bool
    """Whether its process has an id here: else it lives in a PID namespace that this process does not see."""


async def look(rank: int, path: str, own_version: str) -> Sequence[Finding]:
    """Ask the data plane behind a socket."""
    try:
        found = await ask(rank, path)
    except (OSError, aio.AioRpcError) as error:
        return [_unreachable(rank, path, error)]
    return judge(found, own_version)


async def ask(rank: int, path: str) -> DataPlane:
    """What it is.

    Raises:
        OSError: nobody listens on the socket, or it may not be opened.
        grpc.aio.AioRpcError: no answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(path)
        process, _ = peer_of(connection)
    async with aio.insecure_channel(f"unix:{path}", options=channel_options()) as channel:
        said = await DataPlaneServiceStub(channel).Describe(pb.DescribeRequest(), timeout=_TIMEOUT_S)
    return DataPlane(
        rank=rank,
        path=path,
        version=said.version,
        transport=said.access.backend,
        device=said.access.device,
        pool_bytes=said.access.pool_bytes,
        huge_page_bytes=said.huge_page_bytes,
        settings={setting.name: setting.value for setting in said.transport_settings if setting.from_environment},
        process_is_visible=process > 0,
    )


def judge(found: DataPlane, own_version: str) -> list[Finding]:
    """What its answer means."""
    return [_reachable(found, own_version), _settings(found)]


def _reachable(found: DataPlane, own_version: str) -> Finding:
    check = f"{CHECK}.{found.rank}.reachable"
    text = f"kvferry {found.version}, {found.transport}, {found.pool_bytes} bytes on {found.device}"
    values: dict[str, Value] = {
        "socket": found.path,
        "version": found.version,
        "transport": found.transport,
        "device": found.device,
        "pool_bytes": found.pool_bytes,
        "huge_page_bytes": found.huge_page_bytes,
        "process_is_visible": found.process_is_visible,
    }
    if found.version == own_version:
        return ok(check, text, **values)
    return slow(
        check,
        f"{text}; this is kvferry {own_version}",
        costs="parts of one worker in different releases may lack what the other asks for",
        do="restart it with the same release once its publications may go",
        **values,
    )


def _settings(found: DataPlane) -> Finding:
    check, limiting = f"{CHECK}.{found.rank}.settings", {n: v for n, v in found.settings.items() if n in _LIMITING}
    values: dict[str, Value] = {"settings": dict(found.settings)}
    if not limiting:
        text = ", ".join(f"{name}={value}" for name, value in found.settings.items())
        return ok(check, text or "its environment sets nothing of the transport's", **values)
    text = ", ".join(f"{name}={value}" for name, value in limiting.items())
    if (tls := limiting.get("UCX_TLS")) is not None and not allows_more_than_sockets(tls):
        return slow(
            check,
            f"its environment has {text}",
            costs="whatever is not mapped goes over sockets, within the host too",
            do="unset UCX_TLS for the data plane and restart it once its publications may go",
            **values,
        )
    return ok(check, f"its environment limits the transport: {text}", **values)


def allows_more_than_sockets(tls: str) -> bool:
    """Whether a value of ``UCX_TLS`` leaves more than tcp."""
    names = {name.strip() for name in tls.removeprefix("^").split(",")}
    return tls.startswith("^") or bool(names - {"tcp", "self", "sockcm"})


def _unreachable(rank: int, path: str, error: OSError | aio.AioRpcError) -> Finding:
    why = error.strerror if isinstance(error, OSError) else f"{error.code().name}: {error.details()}"
    if isinstance(error, PermissionError):
        do = "run the doctor as the data plane's own user: its sockets are for that user alone"
    else:
        do = f"start it: kvferry dataplane --socket {path}, or correct ranks[{rank}].socket"
    return broken(
        f"{CHECK}.{rank}.reachable",
        f"{path}: {why or error}",
        costs="the worker takes no work without it, and what it had published is gone if it ended",
        do=do,
        socket=path,
    )
