"""An engine as a process of its own, to be killed while it pulls."""

import asyncio
import sys

from kvferry import EngineClient
from tests.process.cluster.stuck_source import LAYOUT, READ

ENGINE_ID = "to-be-killed"
REQUEST_ID = "asked-in-every-life"


async def run(socket: str, handle: bytes) -> None:
    """Pull into the blocks that the tests look at."""
    async with EngineClient.connect(socket, ENGINE_ID, LAYOUT) as engine:
        await engine.pull(handle, READ, timeout_s=60, request_id=REQUEST_ID)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], bytes.fromhex(sys.argv[2])))
