"""Which faults happen in which order: drawn from the seed alone."""

import random
from collections.abc import Iterator, Sequence
from itertools import product

from tests.chaos.faults import Fault
from tests.chaos.network_faults import CutWire, DeafenSide, FreezeEtcd, KillEtcd, LosePackets, PartitionEtcd
from tests.chaos.process_faults import KINDS, SIDES, STAGES, Freeze, Kill, RestartDecode
from tests.chaos.use_faults import Cancellations, FullPool, OldHandles, ReuseUnderRead, ShortLeases

LOSS_PERCENTS = (1, 10)


def every_fault(cancellations: int) -> list[Fault]:
    """One of each."""
    return [
        *(Kill(kind, side, stage) for kind, side, stage in product(KINDS, SIDES, STAGES)),
        *(Freeze(kind, side) for kind, side in product(KINDS, SIDES)),
        KillEtcd(wipe=False),
        KillEtcd(wipe=True),
        FreezeEtcd(),
        PartitionEtcd(both_ways=True),
        PartitionEtcd(both_ways=False),
        CutWire(),
        DeafenSide(),
        *(LosePackets(percent) for percent in LOSS_PERCENTS),
        ShortLeases(),
        ReuseUnderRead(),
        OldHandles(),
        FullPool(),
        Cancellations(cancellations),
        RestartDecode(),
    ]


def one_of_each_kind(draw: random.Random, cancellations: int) -> list[Fault]:
    """Of every kind one fault, in random order."""
    faults = every_fault(cancellations)
    draw.shuffle(faults)
    chosen: dict[str, Fault] = {}
    for fault in faults:
        chosen.setdefault(fault.kind, fault)
    return list(chosen.values())


def rounds(draw: random.Random, cancellations: int) -> Iterator[Fault]:
    """Every fault in random order, over and over; the many cancellations once."""
    count: Sequence[int] = (cancellations, max(cancellations // 20, 1))
    turn = 0
    while True:
        faults = every_fault(count[min(turn, 1)])
        draw.shuffle(faults)
        yield from faults
        turn += 1
