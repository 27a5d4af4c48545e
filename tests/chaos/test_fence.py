"""The check can fail: without the fence, chaos finds wrong bytes."""

import random
import time

from tests.chaos.faults import Scene
from tests.chaos.load import Load
from tests.chaos.probes import recovered
from tests.chaos.report import Report
from tests.chaos.site import Station, running_site
from tests.chaos.use_faults import ReuseUnderRead
from tests.process.launch.capabilities import needs_namespaces

STATIONS = (
    Station("prefill-0", "prefill", 1, "cross-layer"),
    Station("fenced", "decode", 1, "hnd", far=True, flags=("--path", "nixl")),
    Station("unfenced", "decode", 1, "hnd", far=True, flags=("--path", "nixl"), data_plane="tests.chaos.unfenced"),
)

ATTEMPTS_MAX = 5


@needs_namespaces
async def test_without_the_fence_reused_blocks_are_found() -> None:
    """Where blocks are reused under a read, a data plane that looks at lease words fails it as FENCED; one that does
    not reports success, and the report says that bytes were wrong."""
    tallies = {}
    async with running_site(1, STATIONS) as site:
        await recovered(site, time.monotonic())
        for destination in site.destinations:
            load = Load(site, 1)
            tallies[destination] = load.tally
            scene = Scene(site, load, random.Random(2), 0.0)  # noqa: S311 - no secret
            for _ in range(ATTEMPTS_MAX):
                await ReuseUnderRead().on(scene, destination)
                # On a busy machine the lease may end before the read begins: then nothing is read.
                if load.tally.failed["FENCED"] or load.tally.succeeded:
                    break
    assert (1, 0, 0) == (tallies["fenced"].failed["FENCED"], tallies["fenced"].succeeded, tallies["fenced"].wrong_bytes)
    assert 1 == tallies["unfenced"].succeeded
    assert any("wrong bytes" in failure for failure in Report(1, tally=tallies["unfenced"]).failures)
