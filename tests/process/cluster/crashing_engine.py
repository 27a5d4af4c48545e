"""An engine as a process of its own, to be killed: fills some blocks, publishes them and waits."""

import asyncio
import sys

from kvferry import EngineClient
from tests.process.cluster.pair import BLOCK_BYTES, BLOCK_COUNT, MODEL, RANKS, layout_of

ENGINE_ID = "crashing"
REQUEST_ID = "made-before-the-crash"
FILL = 77


async def run(socket: str, blocks: list[int]) -> None:
    """Publish, say the handle on standard output, and stay."""
    async with EngineClient.connect(socket, ENGINE_ID, layout_of()) as engine:
        for rank in range(RANKS):
            pool = (await engine.attach(rank)).numpy()[: BLOCK_BYTES * BLOCK_COUNT].reshape(BLOCK_COUNT, BLOCK_BYTES)
            pool[blocks] = FILL + rank
        tokens = len(blocks) * MODEL.tokens_per_block
        publication = await engine.publish(blocks, tokens, 600.0, expected_readers=0, request_id=REQUEST_ID)
        sys.stdout.write(publication.handle.hex() + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], [int(block) for block in sys.argv[2:]]))
