"""Memory as transports see it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Segment = Literal["DRAM", "VRAM"]
Addresses = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Region:
    """Memory of one side: the pool or a table of words."""

    segment: Segment
    address: int
    size_bytes: int
    device_index: int = 0
