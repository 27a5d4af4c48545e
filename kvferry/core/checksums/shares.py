"""How much is summed or compared: nothing, everything, or one block in so many."""

import re

import numpy as np

from kvferry.core.checksums.formula import TOKEN_STEP, mixed
from kvferry.core.errors import InvalidArgument
from kvferry.core.planning.copies import Offsets

EVERY_MAX = 1 << 20
OFF = 0
FULL = 1
_SAMPLED = re.compile(r"sampled:(\d{1,7})")


def every_of(field: str, text: str) -> int:
    """One block in how many: ``off`` is 0, ``full`` is 1, ``sampled:N`` is N.

    Raises:
        InvalidArgument: none of these; names ``field``.
    """
    match = _SAMPLED.fullmatch(text)
    if text in ("off", "full"):
        return FULL if text == "full" else OFF
    if match is None or not 1 <= int(match[1]) <= EVERY_MAX:
        raise InvalidArgument.of_field(field, text, f"must be off, full or sampled:N with N from 1 to {EVERY_MAX}")
    return int(match[1])


def sample(count: int, every: int, seed: int) -> Offsets:
    """Which of ``count`` things to take: of each ``every`` neighbours one, by chance but the same for the same seed."""
    if every <= 1:
        return np.arange(count, dtype=np.int64)
    firsts = np.arange(0, count, every, dtype=np.int64)
    sizes = np.minimum(every, count - firsts)
    numbers = np.arange(1, firsts.size + 1, dtype=np.uint64)
    chance = mixed(np.uint64(seed & ((1 << 64) - 1)) + numbers * np.uint64(TOKEN_STEP))
    return firsts + (chance % sizes.astype(np.uint64)).astype(np.int64)
