"""``kvferry drain``."""

from dataclasses import dataclass

from kvferry.cli.terminal import console, print_json
from kvferry.core.errors import NotReady
from kvferry.sdk.results import Drain, DrainState
from kvferry.sdk.router import RouterClient


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainOptions:
    """How: ``timeout_s`` None is the worker's own; ``wait`` shows what is left; ``stay`` leaves the control up."""

    timeout_s: float | None
    wait: bool
    stay: bool


async def drain(endpoint: str, worker: str, options: DrainOptions, *, json_output: bool) -> None:
    """Begin a drain.

    Raises:
        NotFound: no such worker lives.
        PermissionDenied: it does not take this over the network.
        NotReady: with ``wait``, the control ended before it had said that nothing is left.
    """
    async with RouterClient(endpoint) as client:
        drained = client.of_worker(worker)
        status = await drained.drain(options.timeout_s, stay=options.stay)
        _show(status, json_output=json_output)
        if not options.wait:
            return
        async for change in drained.watch_drain():
            if change.to_dict() | {"time_left_s": 0} != status.to_dict() | {"time_left_s": 0}:
                status = change
                _show(status, json_output=json_output)
            if status.state in (DrainState.DRAINED, DrainState.NONE):
                break
    if status.state is not DrainState.DRAINED:
        raise NotReady(f"{status.worker} was not drained: its drain is {status.state}")


async def undrain(endpoint: str, worker: str, *, json_output: bool) -> None:
    """Undo a drain. Raises Draining if it is too late."""
    async with RouterClient(endpoint) as client:
        _show(await client.of_worker(worker).undrain(), json_output=json_output)


def _show(status: Drain, *, json_output: bool) -> None:
    if json_output:
        print_json(status.to_dict())
        return
    left = f"{status.live_publication_count} publications, {status.active_transfer_count} pulls left"
    seconds = "" if status.time_left_s is None else f", {status.time_left_s:.0f} s until they are ended"
    leaving = f", leaving ranks {list(status.leaving_ranks)}" if status.leaving_ranks else ""
    console().print(f"{status.worker} {status.state}: {left}{seconds}{leaving}")
