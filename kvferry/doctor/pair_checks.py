"""The checks between two workers: their pairing, the ceilings of this machine, and every path in each direction."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from kvferry.core.errors import KvferryError
from kvferry.doctor import ceilings, pair, pair_verdicts
from kvferry.doctor.examination import Check
from kvferry.doctor.findings import Finding, broken
from kvferry.sdk.results import Worker
from kvferry.sdk.router import RouterClient

MEASURE_S_MAX = 20.0


@dataclass(frozen=True, slots=True)
class PairSubject:
    """Between whom: names of workers, and host:port, or unix: and the path, of any control."""

    own: str
    peer: str
    endpoint: str


def pair_check(subject: PairSubject) -> Check:
    """All of it, one after the other: what is timed is timed alone."""
    return Check(pair_verdicts.CHECK, partial(_look, subject), 2 * (pair.PROBE_S_MAX + MEASURE_S_MAX))


async def _look(subject: PairSubject) -> Sequence[Finding]:
    findings: list[Finding] = []
    try:
        async with RouterClient(subject.endpoint) as router:
            measured = await asyncio.to_thread(ceilings.measure)
            findings += pair_verdicts.judge_ceilings(measured)
            for source, destination in await pair.find_workers(router, subject.own, subject.peer):
                findings.append(pair_verdicts.judge_pairing(await pair.verdict(router, source, destination)))
                findings += await _probe(source, destination, measured)
    except KvferryError as error:
        findings.append(_failed(f"{subject.own} and {subject.peer}", error))
    return findings


async def _probe(source: Worker, destination: Worker, measured: ceilings.Ceilings) -> list[Finding]:
    try:
        return pair_verdicts.judge(await pair.probe(source, destination), measured)
    except KvferryError as error:
        return [_failed(f"{source.name} to {destination.name}", error)]


def _failed(who: str, error: KvferryError) -> Finding:
    return broken(
        f"{pair_verdicts.CHECK}.probe",
        f"{who}: {error}",
        costs="nobody can tell how bytes get from one to the other, nor whether they do",
        do="see that both workers are READY in `kvferry workers`, and that their controls reach each other",
        reason=error.reason.value,
    )
