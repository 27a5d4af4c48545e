"""What a UCX library can use here, in its own words: transports and devices, and why others are missing."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvferry.doctor.child import Answer, ask
from kvferry.doctor.findings import Finding, Value, broken, none, ok, slow
from kvferry_dataplane.config import has_rdma_devices

CHECK = "ucx"
WITHIN_HOST = ("cma", "posix", "sysv")
"""Without these, everything within a host goes over sockets."""
_DRIVER = Path("/proc/driver/nvidia/version")
_RDMA = ("rc_", "ud_", "dc_", "srd", "gga", "rc", "ud")
_RESOURCE = re.compile(r"resource \d+\s+:.*-- (\w+)/(\S+)")
_COMPONENT = re.compile(r"component \d+\s+:\s+(\w+)")
_NOT_LOADED = re.compile(r"dlopen\('\S*lib(?:uct|ucm)_(\w+)\.so[^']*'.*\) failed: (.+)")
_NO_IB = re.compile(r"UCX\s+DEBUG (failed to get ib device list: .+)")
_ERROR = re.compile(r"UCX\s+ERROR (.+)")


@dataclass(frozen=True, slots=True)
class Report:
    """What UCX said."""

    library: str
    version: str
    transports: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Devices by transport, of those that are enabled."""
    components: tuple[str, ...] = ()
    """What was loaded, whether or not it found something to use."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why by module."""
    error: str = ""
    """Why it cannot be used at all."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What UCX should find."""

    tls: str | None
    """``UCX_TLS`` as set."""
    has_rdma: bool
    has_driver: bool


def surroundings() -> Surroundings:
    """Those of this process."""
    return Surroundings(os.environ.get("UCX_TLS"), has_rdma_devices(), _DRIVER.exists())


async def ask_library(library: Path) -> Report:
    """Have a process load the library and print what it finds."""
    level = {"UCX_LOG_LEVEL": "debug", "UCX_LOG_FILE": "stderr"}
    return read(str(library), await ask("kvferry.doctor.ucx_child", str(library), environment=level))


def read(library: str, answer: Answer) -> Report:
    """What a child's answer and UCX's lines say together."""
    if answer.end:
        return Report(library, "", error=answer.end)
    report = answer.values["report"]
    transports: dict[str, tuple[str, ...]] = {}
    for transport, device in _RESOURCE.findall(report):
        transports[transport] = (*transports.get(transport, ()), device)
    missing = dict(_NOT_LOADED.findall(answer.log))
    if found := _NO_IB.search(answer.log):
        missing["ib"] = found[1]
    words = "; ".join(dict.fromkeys(_ERROR.findall(answer.log)))
    error = ": ".join(part for part in (answer.values["error"], words) if part) if answer.values["error"] else ""
    return Report(library, answer.values["version"], transports, tuple(_COMPONENT.findall(report)), missing, error)


def judge(report: Report, around: Surroundings) -> list[Finding]:
    """What a report means."""
    if report.error:
        return [_unusable(report, around)]
    return [_transports(report, around), _rdma(report, around), _cuda(report, around)]


def _values(report: Report, around: Surroundings) -> dict[str, Value]:
    return {
        "library": report.library,
        "version": report.version,
        "transports": {transport: list(devices) for transport, devices in report.transports.items()},
        "missing": dict(report.missing),
        "UCX_TLS": around.tls,
    }


def _unusable(report: Report, around: Surroundings) -> Finding:
    do = "unset UCX_TLS" if around.tls is not None else "install what the message names"
    return broken(
        f"{CHECK}.transports",
        f"UCX {report.version} cannot be used: {report.error}".replace("UCX  ", "UCX "),
        costs="no data plane starts over it",
        do=do,
        **_values(report, around),
    )


def _transports(report: Report, around: Surroundings) -> Finding:
    check, values = f"{CHECK}.transports", _values(report, around)
    text = f"UCX {report.version}: " + ", ".join(
        f"{transport} ({', '.join(devices)})" for transport, devices in report.transports.items()
    )
    if "tcp" not in report.transports and not _rdma_transports(report):
        costs = "no data plane starts: nothing is left that notices a peer's death"
        return broken(check, f"{text}: neither tcp nor RDMA", costs=costs, do=_allow("tcp", around), **values)
    absent = [transport for transport in WITHIN_HOST if transport not in report.transports]
    if "cma" in absent:
        costs = "within the host NIXL reads over sockets, several times slower; the local path does not need it"
        why = f"UCX_TLS={around.tls} leaves out" if around.tls is not None else "without"
        return slow(check, f"{text}; {why} {', '.join(absent)}", costs=costs, do=_allow("cma", around), **values)
    return ok(check, text, **values)


def _allow(transport: str, around: Surroundings) -> str:
    if around.tls is None:
        return f"let UCX use {transport}: see namespaces.cma, and which network interfaces are up"
    return f"unset UCX_TLS, or let it name {transport} too"


def _rdma(report: Report, around: Surroundings) -> Finding:
    check = f"{CHECK}.rdma"
    found = _rdma_transports(report)
    if found:
        return ok(check, ", ".join(f"{transport} ({', '.join(report.transports[transport])})" for transport in found))
    if not around.has_rdma:
        return none(check, "this machine has no RDMA devices: between hosts bytes go over tcp")
    why = report.missing.get("ib") or (f"UCX_TLS={around.tls}" if around.tls is not None else "UCX names no device")
    return broken(
        check,
        f"this machine has RDMA devices, and UCX {report.version} uses none: {why}",
        costs="between hosts bytes go over tcp, an order of magnitude slower",
        do="give the container --device /dev/infiniband and --ulimit memlock=-1"
        if around.tls is None
        else "unset UCX_TLS",
        missing=dict(report.missing),
    )


def _rdma_transports(report: Report) -> list[str]:
    return [transport for transport in report.transports if transport.startswith(_RDMA)]


def _cuda(report: Report, around: Surroundings) -> Finding:
    check = f"{CHECK}.cuda"
    found = [transport for transport in report.transports if transport.startswith("cuda")]
    if found:
        return ok(check, f"{', '.join(found)}: pools on a GPU can be read")
    why = report.missing.get("cuda", "UCX names no GPU")
    if not around.has_driver:
        return none(check, f"no GPU: {why}")
    return broken(
        check,
        f"there is a GPU driver, and UCX {report.version} cannot use it: {why}",
        costs="pools on a GPU cannot be read by NIXL, only by data planes of the same host over the local path",
        do=f"make the library loadable that the message names ({why.partition(':')[0]}), or unset UCX_TLS",
    )
