"""The digest kernel gives the sums that are defined, and data planes on a GPU compare with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvferry.core.checksums.regions import DigestRegion, TokenRanges, digest_region
from kvferry.core.dense import HND, NHD, DenseModel, dense_layout
from kvferry.core.errors import Cancelled, InvalidArgument
from kvferry.core.layouts import ElementType
from kvferry.device.copying import Window
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_digest import CudaDigester
from kvferry.device.native import CancelFlag, digest_host
from tests.gpu.memory import Bytes, memory
from tests.unit.checksums.reference import sums_of


def region_of(
    head_dim: int,
    element_type: ElementType,
    tokens_per_block: int,
    order: tuple[str, ...],
    *,
    layers: int = 2,
    heads: int = 2,
    blocks: int = 8,
    kv_factor: int = 2,
) -> tuple[DigestRegion, int]:
    """All tokens but three of half of the blocks, two blocks a row; and the size of the pool."""
    model = DenseModel("m", layers, heads, head_dim, tokens_per_block, element_type, kv_factor)
    layout = dense_layout(model, blocks, order=order)
    count = max(blocks // 2, 1)
    listed = np.random.default_rng(1).permutation(blocks)[:count].astype(np.int64)
    total = count * tokens_per_block - min(3, tokens_per_block - 1)
    firsts = np.arange(count, dtype=np.int64) * tokens_per_block
    counts = np.minimum(tokens_per_block, total - firsts)
    ranges = TokenRanges(firsts, counts, np.arange(count) // 2, -(-count // 2))
    placement = layout.ranks[0].placements[0]
    size = blocks * tokens_per_block * layers * kv_factor * heads * head_dim * element_type.size_bytes
    return digest_region(layout.groups[0], placement, listed, total, ranges), size


def host_window(data: Bytes) -> Window:
    """Host memory."""
    return Window(data.ctypes.data, data.nbytes)


@pytest.fixture
def digester(device: CudaDevice, kernels: Path) -> CudaDigester:
    """A digester with all of the device."""
    return CudaDigester(device, cache_directory=kernels)


@pytest.mark.parametrize("order", [NHD, HND, ("dim", "block", "layer", "kv", "head", "token")])
@pytest.mark.parametrize(
    ("head_dim", "element_type"),
    [
        (1, ElementType.FLOAT32),
        (3, ElementType.INT8),
        (64, ElementType.BFLOAT16),
        (72, ElementType.BFLOAT16),
        (128, ElementType.BFLOAT16),
        (300, ElementType.FLOAT32),
        (512, ElementType.BFLOAT16),
        (1500, ElementType.FLOAT8_E4M3),
    ],
)
def test_the_kernel_gives_the_defined_sums(
    device: CudaDevice, digester: CudaDigester, head_dim: int, element_type: ElementType, order: tuple[str, ...]
) -> None:
    """Runs of any length, also strided and at odd addresses, have the sums of the definition."""
    region, size = region_of(head_dim, element_type, 5, order)
    for shift in (0, 1):
        data = np.random.default_rng(head_dim).integers(0, 256, size + shift, dtype=np.uint8)
        shifted = replace(region, bases=region.bases + shift)
        with memory(device, size + shift) as pool:
            pool.put(data)
            assert sums_of(data, shifted).tolist() == digester.digest(pool.window, shifted).tolist()


def test_the_kernel_and_the_native_core_agree_on_much(device: CudaDevice, digester: CudaDigester) -> None:
    """A region of 64 MiB and one of long runs have the same sums on the device and on the host."""
    for shape in (
        {"layers": 8, "heads": 8, "blocks": 256, "head_dim": 128, "tokens_per_block": 16},
        {"layers": 4, "heads": 1, "blocks": 4, "head_dim": 1 << 20, "tokens_per_block": 1, "kv_factor": 1},
    ):
        region, size = region_of(element_type=ElementType.BFLOAT16, order=NHD, **shape)
        data = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
        with memory(device, size) as pool:
            pool.put(data)
            found = digester.digest(pool.window, region)
        assert digest_host(host_window(data), region, 4).tolist() == found.tolist()


def test_bounds_and_cancels_are_heeded(device: CudaDevice, digester: CudaDigester) -> None:
    """A region that leaves the memory is refused before a launch, and a raised flag ends a digest."""
    region, size = region_of(64, ElementType.BFLOAT16, 4, HND)
    with memory(device, size) as pool:
        with pytest.raises(InvalidArgument):
            digester.digest(Window(pool.window.address, size // 4), region)
        flag = CancelFlag()
        flag.raise_()
        with pytest.raises(Cancelled):
            digester.digest(pool.window, region, flag)
