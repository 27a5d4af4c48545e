"""``kvferry transfers``."""

from datetime import UTC, datetime

from rich.table import Table

from kvferry.cli.figures import milliseconds, rate_text, size_text
from kvferry.cli.terminal import console, print_json, table
from kvferry.core.errors import NotFound
from kvferry.launch.concurrently import all_of
from kvferry.sdk.results import Role, TransferResult
from kvferry.sdk.router import RouterClient
from kvferry.sdk.worker_client import WorkerClient

_COLUMNS = ("transfer", "state", "from", "to", "path", "bytes", "total ms", "GB/s")
_FIGURES = 3


async def list_transfers(endpoint: str, worker: str | None, *, limit: int, json_output: bool) -> None:
    """List the newest transfers into one worker, or into all that decode."""
    async with RouterClient(endpoint) as client:
        listed = await all_of(one.transfers(limit) for one in await _destinations(client, worker))
    oldest = datetime.min.replace(tzinfo=UTC)
    found = [transfer for transfers in listed for transfer in transfers]
    found.sort(key=lambda transfer: transfer.create_time or oldest, reverse=True)
    if json_output:
        for transfer in found[:limit]:
            print_json(transfer.to_dict())
    else:
        console().print(table("transfers", _COLUMNS, map(_row, found[:limit]), right=_FIGURES))


async def show_transfer(endpoint: str, worker: str | None, name: str, *, json_output: bool) -> None:
    """Show one transfer. Raises NotFound if no worker knows it."""
    async with RouterClient(endpoint) as client:
        transfer = await _find(await _destinations(client, worker), name)
    if json_output:
        print_json(transfer.to_dict())
    else:
        console().print(_detail(transfer))


async def watch_transfers(endpoint: str, worker: str | None, name: str | None, *, json_output: bool) -> None:
    """Write every change of transfers as it comes, until cancelled; with ``name``, until that one has ended."""
    async with RouterClient(endpoint) as client:
        workers = await _destinations(client, worker)
        if name is not None:
            workers = [client.of_worker((await _find(workers, name)).destination_worker)]
        await all_of(_watch(one, name, json_output=json_output) for one in workers)


async def _watch(worker: WorkerClient, name: str | None, *, json_output: bool) -> None:
    out = console()
    wanted = None if name is None else f"transfers/{name.removeprefix('transfers/')}"
    async for transfer in worker.watch_transfers():
        if wanted not in (None, transfer.name):
            continue
        if json_output:
            print_json(transfer.to_dict())
        else:
            out.print("  ".join(_row(transfer)))
        if wanted is not None and transfer.state.is_terminal:
            return


async def _destinations(client: RouterClient, worker: str | None) -> list[WorkerClient]:
    if worker is not None:
        return [client.of_worker(worker)]
    decoding = [one for one in await client.workers() if one.role in (Role.DECODE, Role.BOTH)]
    return [client.of_worker(one.name) for one in decoding]


async def _find(workers: list[WorkerClient], name: str) -> TransferResult:
    for worker in workers:
        try:
            return await worker.transfer(name)
        except NotFound:
            continue
    raise NotFound.of_field("name", name, f"none of {len(workers)} decode workers knows this transfer")


def _row(transfer: TransferResult) -> tuple[str, ...]:
    state = transfer.state if transfer.reason is None else f"{transfer.state} ({transfer.reason})"
    return (
        transfer.name.removeprefix("transfers/"),
        state,
        transfer.source_worker.removeprefix("workers/"),
        transfer.destination_worker.removeprefix("workers/"),
        transfer.path,
        size_text(transfer.received_bytes),
        milliseconds(transfer.total_s),
        rate_text(transfer.received_bytes, transfer.read_s),
    )


def _detail(transfer: TransferResult) -> Table:
    apart = ("ranks", "attempts")
    rows = [(key, str(value)) for key, value in transfer.to_dict().items() if key not in apart and value != ""]
    for attempt in transfer.attempts:
        what = f"{attempt.reason}: {attempt.message}; {size_text(attempt.received_bytes)} received"
        rows.append((f"gave up {attempt.source_worker}", f"{what}, {attempt.verified_tokens} tokens verified by then"))
    for rank in transfer.ranks:
        what = f"{rank.path}/{rank.backend}, {size_text(rank.received_bytes)} in {rank.descriptor_count} pieces"
        rows.append((f"rank {rank.rank}", f"{what}, read {milliseconds(rank.read_s)} ms"))
    return table(transfer.name, ("field", "value"), rows)
