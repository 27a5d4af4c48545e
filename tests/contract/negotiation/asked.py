"""What a source answers, for who waits for it."""

import asyncio

from kvferry.core.errors import KvferryError
from kvferry.negotiation.v1 import negotiation_pb2 as pb
from kvferry_control.peers.source import Source
from kvferry_control.peers.sources import Sources
from kvferry_control.records import WorkerRecord


async def negotiated(
    sources: Sources, record: WorkerRecord, transfer: str, deadline: float
) -> tuple[Source, pb.NegotiateResponse]:
    """A negotiation, waited for; who is cancelled meanwhile cancels it. Raises the refusal."""
    heard: asyncio.Future[tuple[Source, pb.NegotiateResponse]] = asyncio.get_running_loop().create_future()

    def answered(source: Source, answer: pb.NegotiateResponse | KvferryError) -> None:
        if isinstance(answer, KvferryError):
            heard.set_exception(answer)
        else:
            heard.set_result((source, answer))

    negotiation = sources.ask(record, transfer, b"handle", 1, deadline, answered)
    try:
        return await heard
    finally:
        negotiation.cancel()
