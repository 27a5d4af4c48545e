"""Asks the ranks of a publication for their checksums, all at once."""

import asyncio
from collections.abc import Sequence

from kvferry.core.errors import KvferryError
from kvferry.dataplane.v1 import dataplane_pb2 as dp
from kvferry.negotiation.v1 import negotiation_pb2 as neg
from kvferry_control.ranks.link import RankLink


async def checksums_of(links: Sequence[RankLink], command: dp.SumChecksums) -> list[neg.RankChecksums]:
    """What each rank says, in the order of the links.

    Raises:
        KvferryError: a rank refused, or is lost.
    """
    async with asyncio.TaskGroup() as ranks:
        answers = [ranks.create_task(_ask(link, command)) for link in links]
    found = []
    for answer in answers:
        result = answer.result()
        if isinstance(result, KvferryError):
            raise result
        found.append(result)
    return found


async def _ask(link: RankLink, command: dp.SumChecksums) -> neg.RankChecksums | KvferryError:
    """Errors are given back, so that one rank's does not cancel the others' in a group of errors."""
    try:
        answer = await link.command(dp.SessionRequest(sum_checksums=command))
    except KvferryError as error:
        return error
    return answer.checksums_summed.checksums
