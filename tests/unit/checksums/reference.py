"""The sums by their definition, run by run with Python's own integers."""

import numpy as np
import numpy.typing as npt

from kvferry.core.checksums.formula import CHUNK_BYTES, CHUNK_STEP, LINE_BYTES, TOKEN_STEP, Words, word_keys
from kvferry.core.checksums.regions import DigestRegion

Bytes = npt.NDArray[np.uint8]
_MASK = (1 << 64) - 1


def mixed(x: int) -> int:
    """One word."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


def chunk_hash(chunk: bytes) -> int:
    """NH of a chunk."""
    padded = chunk + bytes(-len(chunk) % LINE_BYTES)
    words = np.frombuffer(padded, dtype="<u4").astype(np.uint64)
    keyed = (words + word_keys()[: words.size]) % (1 << 32)
    return sum(int(a) * int(b) for a, b in zip(keyed[::2], keyed[1::2], strict=True)) & _MASK


def run_sum(run: bytes, cell_key: int, token: int) -> int:
    """The terms of a token in a cell."""
    total = 0
    for number, at in enumerate(range(0, len(run), CHUNK_BYTES)):
        key = cell_key + (token + 1) * TOKEN_STEP + number * CHUNK_STEP & _MASK
        total += mixed(chunk_hash(run[at : at + CHUNK_BYTES]) ^ mixed(key))
    return total & _MASK


def sums_of(memory: Bytes, region: DigestRegion) -> Words:
    """All sums of a region, ``[row, cell]``."""
    sums = [[0] * region.cell_offsets.size for _ in range(region.row_count)]
    elements = np.arange(region.run_elements)[:, None] * region.dim_stride + np.arange(region.element_bytes)
    segments = zip(*(part.tolist() for part in (region.bases, region.tokens, region.counts, region.rows)), strict=True)
    for base, first, count, row in segments:
        for cell, (offset, key) in enumerate(zip(region.cell_offsets.tolist(), region.cell_keys.tolist(), strict=True)):
            for index in range(count):
                run = memory[base + offset + index * region.token_stride + elements].tobytes()
                sums[row][cell] = sums[row][cell] + run_sum(run, key, first + index) & _MASK
    return np.array(sums, dtype=np.uint64).reshape(region.row_count, -1)
