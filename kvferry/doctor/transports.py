"""Whether data planes can use each transport here: opened as they open it, with what each lacks in its own words."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvferry.core.backends import Transport
from kvferry.doctor import ucx
from kvferry.doctor.child import Answer, ask
from kvferry.doctor.findings import Finding, Value, broken, none, ok
from kvferry.doctor.nixl import remedy

CHECK = "transport"
_FLAGS = {
    Transport.NIXL_UCX: "--backend NIXL",
    Transport.NIXL_LIBFABRIC: "--backend NIXL --nixl-backend LIBFABRIC",
    Transport.UCX: "--backend UCX",
}


@dataclass(frozen=True, slots=True)
class Opened:
    """What became of a transport."""

    transport: Transport
    version: str
    error: str
    ucx_library: str
    """The file of the UCX that was loaded for it; empty if none was."""


async def look(transport: Transport, wanted: Transport, ucx_library: str | None) -> Sequence[Finding]:
    """Open one; of the one that is ``wanted``, also what its UCX can use.

    ``ucx_library``: the file of UCX that direct UCX takes; None: the one that is found.
    """
    named = () if ucx_library is None else (ucx_library,)
    opened = read(transport, await ask("kvferry.doctor.transport_child", transport.value, *named))
    findings = [judge(opened, wanted)]
    if transport is wanted and opened.ucx_library:
        findings += ucx.judge(await ucx.ask_library(Path(opened.ucx_library)), ucx.surroundings())
    return findings


def read(transport: Transport, answer: Answer) -> Opened:
    """A child's answer."""
    if answer.end:
        return Opened(transport, "", answer.end, "")
    values = answer.values
    return Opened(transport, values["version"], values["error"], values["ucx_library"])


def judge(opened: Opened, wanted: Transport) -> Finding:
    """What it means where data planes are to use ``wanted``."""
    transport = opened.transport
    check = f"{CHECK}.{transport.value.replace('/', '_').lower()}"
    values: dict[str, Value] = {
        "version": opened.version,
        "error": opened.error,
        "wanted": transport is wanted,
        "ucx_library": opened.ucx_library,
    }
    if not opened.error:
        return ok(check, f"{transport} {opened.version}: an agent can be made", **values)
    if transport is not wanted:
        return none(check, f"{transport} cannot be used, and need not be: {opened.error}", **values)
    do = remedy(opened.error)
    if opened.ucx_library:
        do = "look at ucx.transports below; UCX_TLS must not exclude tcp on a machine without RDMA"
    return broken(
        check,
        f"{transport} cannot be used: {opened.error}",
        costs=f"no data plane starts with {_FLAGS[transport]}",
        do=do,
        **values,
    )
