"""Whether every pair can pull."""

import asyncio
import time

from tests.chaos.site import Site
from tests.chaos.wire import EngineGone, PublishOrder, PullOrder

PROBE_TIMEOUT_S = 30.0
PROBE_PULL_S = 2.0
PROBE_PAUSE_S = 0.1


async def recovered(site: Site, healed: float) -> tuple[float, str]:
    """Pull once over every pair; how long after ``healed`` the last could, and which that was."""
    pairs = [(source, destination) for source in site.sources for destination in site.destinations]
    async with asyncio.TaskGroup() as probes:
        took = [probes.create_task(_probe(site, source, destination, healed)) for source, destination in pairs]
    return max(
        (task.result(), f"{source} to {destination}") for task, (source, destination) in zip(took, pairs, strict=True)
    )


async def _probe(site: Site, source: str, destination: str, healed: float) -> float:
    while time.monotonic() < healed + PROBE_TIMEOUT_S:
        if await _pulls(site, source, destination):
            return time.monotonic() - healed
        await asyncio.sleep(PROBE_PAUSE_S)
    return float("inf")


async def _pulls(site: Site, source: str, destination: str) -> bool:
    try:
        order = PublishOrder(seed=1, token_count=16, ttl_s=PROBE_PULL_S, readers=1)
        published = await site.engines[source].publish(order)
        if not published.handle:
            return False
        pull = PullOrder(handle=published.handle, seed=1, token_count=16, timeout_s=PROBE_PULL_S)
        return (await site.engines[destination].pull(pull)).state == "succeeded"
    except (EngineGone, KeyError):
        return False
