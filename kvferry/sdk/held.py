"""What an engine that was restarted finds: the publications that an earlier life of it made and that still hold."""

from typing import TYPE_CHECKING

from kvferry.engine.v1 import engine_pb2 as pb
from kvferry.rpc.block_lists import listed_ids
from kvferry.sdk.calls import Caller
from kvferry.sdk.cluster import all_pages
from kvferry.sdk.convert import publication_of
from kvferry.sdk.results import HeldPublication

if TYPE_CHECKING:
    from kvferry.engine.v1.engine_pb2_grpc import EngineServiceAsyncStub

PAGE_SIZE = 1_000


async def held_publications(engines: "EngineServiceAsyncStub", call: Caller, timeout_s: float) -> list[HeldPublication]:
    """All live publications of the worker, newest first; ``timeout_s`` bounds each page.

    Raises:
        KvferryError: control cannot be reached, or ends.
    """

    async def page(token: str) -> tuple[list[HeldPublication], str]:
        request = pb.ListHeldPublicationsRequest(page_size=PAGE_SIZE, page_token=token)
        response = await call(engines.ListHeldPublications, request, timeout_s)
        return [_held_of(held) for held in response.publications], response.next_page_token

    return await all_pages(page)


def _held_of(held: pb.HeldPublication) -> HeldPublication:
    return HeldPublication(
        publication=publication_of(held.publication, held.handle),
        request_id=held.request_id,
        blocks={blocks.group: tuple(map(int, listed_ids("blocks", blocks))) for blocks in held.blocks},
    )
