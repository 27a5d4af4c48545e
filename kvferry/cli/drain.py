"""``kvferry drain``."""

from contextlib import aclosing
from dataclasses import dataclass, replace

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
        if not options.wait:
            _show(await drained.drain(options.timeout_s, stay=options.stay), json_output=json_output)
            return
        shown: Drain | None = None
        async with aclosing(drained.watch_drain()) as changes:
            async for change in changes:
                # Begun only when it is watched: a control that has nothing left ends at once.
                status = change if shown else await drained.drain(options.timeout_s, stay=options.stay)
                if shown is None or replace(status, time_left_s=None) != replace(shown, time_left_s=None):
                    _show(status, json_output=json_output)
                shown = status
                if status.state in (DrainState.DRAINED, DrainState.NONE):
                    break
    if shown is None or shown.state is not DrainState.DRAINED:
        raise NotReady(f"workers/{worker} was not drained: its drain is {shown.state if shown else 'not known'}")


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
