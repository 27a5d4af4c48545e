"""The sum of a cell over some tokens: what is added, and the keys that say where.

A *cell* is one layer, K or V, and KV head. What a token has in a cell is a *run*: its elements in order, without gaps.
A run is cut into chunks of ``CHUNK_BYTES``, the last one filled up with zeros to a multiple of ``LINE_BYTES``. A chunk
of 32-bit words ``m`` is hashed by NH, ``sum((m[2i] + k[2i] mod 2**32) * (m[2i+1] + k[2i+1] mod 2**32)) mod 2**64`` with
fixed random words ``k`` (Black, Halevi, Krawczyk, Krovetz, Rogaway: UMAC, CRYPTO '99): two different chunks have equal
hashes with probability 2**-32. With ``mixed``, a bijection of 64 bits (variant 13 of Stafford's finalisers, as in
SplitMix64: Steele, Lea, Flood, OOPSLA '14), the chunk's term is

    mixed(NH ^ mixed(cell_key + (token + 1) * TOKEN_STEP + chunk * CHUNK_STEP))

and terms are added modulo 2**64. So the sum of tokens is that of its parts in any order and any split, and a run that
is found at another token or cell adds another term. It finds faults, not forgeries: whoever knows the keys can make
two contents of one sum.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 1024
LINE_BYTES = 64
TOKEN_STEP = 0x9E3779B97F4A7C15
CHUNK_STEP = 0xD1342543DE82EF95

Words = npt.NDArray[np.uint64]

_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WORD_SEED = 0x6B76_6665_7272_7921
_CELL_SEED = 0x6365_6C6C_0000_0000
_HEAD_BITS = 12


def mixed(words: Words) -> Words:
    """A bijection of 64-bit words each of whose bits follows from all bits."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_FIRST)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_SECOND)
    return words ^ (words >> np.uint64(31))


def word_keys() -> npt.NDArray[np.uint32]:
    """NH's key: a word for each of a chunk."""
    counters = np.arange(1, CHUNK_BYTES // 4 + 1, dtype=np.uint64)
    words: npt.NDArray[np.uint32] = (mixed(np.uint64(_WORD_SEED) + counters * np.uint64(TOKEN_STEP)) >> 32).astype(
        np.uint32
    )
    return words


def cell_keys(layers: Sequence[int], kv_factor: int, heads: Sequence[int]) -> Words:
    """Keys of cells, ``[layer, kv, head]`` flattened; layers and heads are the model's numbers."""
    layer = np.asarray(layers, dtype=np.uint64).reshape(-1, 1, 1)
    kv = np.arange(kv_factor, dtype=np.uint64).reshape(1, -1, 1)
    head = np.asarray(heads, dtype=np.uint64).reshape(1, 1, -1)
    numbers = ((layer * np.uint64(2) + kv) << np.uint64(_HEAD_BITS)) + head
    return mixed(np.uint64(_CELL_SEED) + numbers).reshape(-1)
