"""One request through a running cluster: prefilled on one worker, pulled and decoded on another, compared.

Waits until both workers are ready, then writes one JSON object. Exit status 0 if the tokens are those that one process
computes alone, else 1. The engines are kvferry's reference engines with their default model.
"""

# ruff: noqa: INP001 - run by path, in no package
import argparse
import asyncio
import json
import sys

from grpc import aio

from kvferry import RouterClient
from kvferry.core.errors import KvferryError
from kvferry.demo.prompts import Request
from kvferry.demo.router import Router, Served
from kvferry.demo.settings import MAX_NEW_TOKENS, MODEL
from kvferry.reference_engine.generate import generate_alone
from kvferry.rpc.options import channel_options
from kvferry.sdk.results import Worker, WorkerState

PROMPT = b"The right bytes, on a known path, or a typed error before the deadline. " * 8


async def ready_workers(control: str, count: int) -> tuple[Worker, ...]:
    """Wait until the control at ``control`` sees ``count`` workers that are ready."""
    async with RouterClient(control) as router:
        async for view in router.watch_workers():
            ready = tuple(worker for worker in view.workers if worker.state is WorkerState.READY)
            if len(ready) >= count:
                return ready
    raise AssertionError("a watch of workers has no end")


async def serving(address: str) -> None:
    """Wait until something speaks gRPC at ``address``."""
    async with aio.insecure_channel(address, options=channel_options()) as channel:
        await channel.channel_ready()


async def serve_one(options: argparse.Namespace) -> tuple[tuple[Worker, ...], Served]:
    """Send one request through both workers. Raises TimeoutError, KvferryError."""
    async with asyncio.timeout(options.timeout):
        workers = await ready_workers(options.control, 2)
        await serving(options.prefill)
        await serving(options.decode)
        async with Router(options.prefill, options.decode) as router:
            return workers, await router.serve(Request(options.request_id, tuple(PROMPT)))


def main() -> int:
    """Run once and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", required=True, help="host:port of any control")
    parser.add_argument("--prefill", required=True, help="host:port of the prefill worker's reference engine")
    parser.add_argument("--decode", required=True, help="host:port of the decode worker's reference engine")
    parser.add_argument("--request-id", default="smoke", help="not used before")
    parser.add_argument("--timeout", type=float, default=90.0, help="seconds for everything but the comparison")
    options = parser.parse_args()
    try:
        workers, served = asyncio.run(serve_one(options))
    except (KvferryError, TimeoutError) as error:
        sys.stderr.write(f"error: {str(error) or f'not done after {options.timeout:g} s'}\n")
        return 1
    equal = list(served.tokens) == generate_alone(MODEL, served.request.prompt_tokens, MAX_NEW_TOKENS)
    report = {
        "ok": equal,
        "workers": {worker.name: worker.state for worker in workers},
        "transfer": served.transfer.to_dict(),
    }
    sys.stdout.write(f"{json.dumps(report)}\n")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
