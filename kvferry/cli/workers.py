"""``kvferry workers``."""

from kvferry.cli.figures import size_text
from kvferry.cli.terminal import console, print_json, table
from kvferry.sdk.results import AttestedRoute, Worker
from kvferry.sdk.router import RouterClient


async def show_workers(endpoint: str, *, json_output: bool) -> None:
    """List the live workers, one line each. Raises NotReady if nobody answers at ``endpoint``."""
    async with RouterClient(endpoint) as client:
        workers = await client.workers()
    if json_output:
        for worker in workers:
            print_json(worker.to_dict())
        return
    columns = ("worker", "role", "state", "endpoint", "devices", "model", "incarnation", "ranks", "pool each")
    console().print(table("workers", columns, map(_worker_row, workers), right=3))


async def show_pairs(endpoint: str, *, json_output: bool) -> None:
    """List pairs of workers and every reason why they do not match."""
    async with RouterClient(endpoint) as client:
        pairs = await client.pairs(compatible_only=False)
    if json_output:
        for pair in pairs:
            print_json(pair.to_dict())
        return
    rows = [
        (
            pair.source,
            pair.destination,
            "yes" if pair.compatible else "no",
            "\n".join(f"{m.reason} {m.field}: {m.source} and {m.destination}" for m in pair.mismatches),
            "\n".join(pair.draining),
            "\n".join(map(_route_text, pair.routes)) or pair.attestation_refusal or "(not read yet)",
            "\n".join(pair.warnings),
        )
        for pair in pairs
    ]
    columns = ("source", "destination", "compatible", "why not", "draining", "attested", "warnings")
    console().print(table("pairs", columns, rows))


def _route_text(route: AttestedRoute) -> str:
    used = f"{route.transport or 'unknown'} {route.device}".strip()
    rates = f"{route.gbytes_per_s:.3g} GB/s, {route.small_gbytes_per_s:.3g} in 4 KiB, {route.latency_s * 1e6:.0f} µs"
    lost = f"; degraded from {route.best_gbytes_per_s:.3g}" if route.degraded else ""
    return f"{route.path}/{route.backend} by {used}: {rates}{lost}"


def _worker_row(worker: Worker) -> tuple[str, ...]:
    return (
        worker.name.removeprefix("workers/"),
        worker.role,
        worker.state,
        worker.endpoint,
        ", ".join(sorted({rank.device for rank in worker.ranks})),
        worker.layout.model if worker.layout else "(no engine yet)",
        str(worker.incarnation),
        str(len(worker.ranks)),
        ", ".join(sorted({size_text(rank.pool_bytes) for rank in worker.ranks})),
    )
