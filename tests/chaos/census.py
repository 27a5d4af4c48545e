"""Counts what processes hold: descriptors, threads, mappings of pools, leases, blocks, transfers."""

import asyncio
import http.client
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.site import Managed, Site
from tests.chaos.wire import EngineGone
from tests.process.descriptors import open_descriptors

_FETCH_S = 3.0
ZERO = {
    "data plane": (
        "kvferry_dataplane_leases_live",
        "kvferry_dataplane_blocks_pinned",
        "kvferry_dataplane_reads_outstanding",
        "kvferry_dataplane_reads_queued",
        "kvferry_dataplane_pack_slots_held",
        "kvferry_dataplane_read_slots_held",
    ),
    "control": ("kvferry_active_transfers", "kvferry_live_publications"),
}
"""Gauges that are 0 while nothing is under way."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What one process holds."""

    descriptors: int
    sockets: int
    """Of the descriptors."""
    threads: int
    pool_mappings: int
    """Mapped segments of shared memory."""
    resident_bytes: int
    kinds: tuple[str, ...] = ()
    """What the descriptors are, sorted."""

    def to_dict(self) -> dict[str, int]:
        """For JSON."""
        values = asdict(self)
        del values["kinds"]
        return values


def holding(pid: int) -> Holding:
    """What a process holds now. Raises OSError if it has ended."""
    process = Path("/proc", str(pid))
    targets = open_descriptors(pid)
    maps = (process / "maps").read_text().splitlines()
    pages = int((process / "statm").read_text().split()[1])
    return Holding(
        descriptors=len(targets),
        sockets=sum(target.startswith("socket:") for target in targets),
        threads=len(list((process / "task").iterdir())),
        pool_mappings=sum("/memfd:" in line for line in maps),
        resident_bytes=pages * 4096,
        kinds=tuple(sorted(target.partition(":[")[0] for target in targets)),
    )


def census(site: Site) -> dict[str, Holding]:
    """Of every process, by name."""
    return {name: holding(managed.child().pid) for name, managed in site.processes.items()}


async def pending(site: Site) -> list[str]:
    """What is still under way or pinned anywhere; empty when all is quiet. A process that does not answer counts."""
    found = []
    for managed in site.processes.values():
        if managed.kind in ZERO:
            found += await _pending_of(site, managed)
    for name in site.stations:
        try:
            figures = await asyncio.wait_for(site.engines[name].figures(), _FETCH_S)
        except (KeyError, EngineGone, TimeoutError):
            found.append(f"engine of {name} does not answer")
            continue
        found += [
            f"{name}: {figures[what]} {what}" for what in ("live_publications", "pulling", "watching") if figures[what]
        ]
    return found


async def _pending_of(site: Site, managed: Managed) -> list[str]:
    try:
        values = await asyncio.to_thread(metrics, site, managed)
    except (OSError, http.client.HTTPException, LookupError) as error:
        return [f"{managed.name} does not answer: {error!r}"]
    return [f"{managed.name}: {values[name]:g} {name}" for name in ZERO[managed.kind] if values.get(name)]


def metrics(site: Site, managed: Managed) -> dict[str, float]:
    """A process's metrics: the sum of each over its labels. Raises OSError if it does not answer."""
    worker = site.workers[managed.worker]
    if managed.kind == "control":
        address = worker.metrics_address
    else:
        address = worker.data_plane_metrics_address(int(managed.name.rpartition("dp")[2]))
    text = site.namespace(managed.worker).call(_fetcher(address))
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def _fetcher(address: str) -> Callable[[], str]:
    def fetch() -> str:
        connection = http.client.HTTPConnection(address, timeout=_FETCH_S)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    return fetch


async def quiet(site: Site, timeout_s: float) -> list[str]:
    """Wait until nothing is pending; what still is after ``timeout_s``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while left := await pending(site):
        if loop.time() > deadline:
            return left
        await asyncio.sleep(0.3)
    return []
