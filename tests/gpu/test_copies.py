"""The kernels copy exactly what plans say."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from kvferry.core.dense import DenseModel
from kvferry.core.layouts import ElementType
from kvferry.core.planning.copies import Axis, CopyPlan, StridedCopy, concatenated
from kvferry.core.planning.planner import PairPlan
from kvferry.device import copy_slots, copy_table, cuda_copy
from kvferry.device.copy_regions import regions_of
from kvferry.device.copying import Copies, Window
from kvferry.device.cuda import CudaDevice
from kvferry.device.cuda_copy import CudaCopier
from tests.gpu.memory import memory, run
from tests.unit.device.random_copies import random_copies
from tests.unit.planning import reference
from tests.unit.planning.test_matrix import TENSOR_PARALLEL, block_ids, cases

SPACE = 1 << 18
POOL_BYTES = 4 << 20


@pytest.mark.parametrize(
    "tensor_parallel", list(product(TENSOR_PARALLEL, TENSOR_PARALLEL)), ids=lambda tp: f"{tp[0]}to{tp[1]}"
)
def test_the_matrix(
    device: CudaDevice, source_device: CudaDevice, copier: CudaCopier, tensor_parallel: tuple[int, int]
) -> None:
    """Every pair of layouts is copied as the reference does it, flat and as regions, and no other byte changes."""
    rng = np.random.default_rng(tensor_parallel)
    with memory(source_device, POOL_BYTES) as there, memory(device, POOL_BYTES) as here:
        for number, (source, destination, (heads, kv_factor), window, tokens) in enumerate(cases(tensor_parallel)):
            model = DenseModel("m", 3, heads, 4 << number % 3, 16, ElementType.BFLOAT16, kv_factor, window)
            layouts = source.layout(model), destination.layout(model)
            ids = block_ids(layouts[0], tokens.total, rng), block_ids(layouts[1], tokens.stop, rng)
            lists = [{"full": np.array(listed, dtype=np.int64)} for listed in ids]
            rank = int(rng.integers(len(layouts[1].ranks)))
            request = PairPlan(*layouts, rank).request(lists[0], lists[1], tokens)
            for peer, plan in request.plans().items():
                pools = [
                    rng.integers(0, 256, reference.pool_bytes(layout, at), np.uint8)
                    for layout, at in zip(layouts, (peer, rank), strict=True)
                ]
                expected = pools[1].copy()
                reference.run(plan, pools[0], expected)
                there.put(pools[0])
                windows = Window(there.window.address, pools[0].size), Window(here.window.address, expected.size)
                for copies in ([plan], request.strided(peer)):
                    here.put(pools[1])
                    run(copier, *windows, copies)
                    assert np.array_equal(expected, here.get(expected.size)), (source, destination, number, rank, peer)


@pytest.mark.parametrize("sm_count_max", [None, 1, 3])
def test_random_copies(device: CudaDevice, source_device: CudaDevice, kernels: Path, sm_count_max: int | None) -> None:
    """Random shapes, strides of either sign, odd sizes and alignments: the same bytes as the reference's."""
    copier = CudaCopier(device, sm_count_max=sm_count_max, cache_directory=kernels)
    size = 10 * SPACE
    with memory(source_device, size + 64) as there, memory(device, size + 64) as here:
        for seed in range(120):
            rng = np.random.default_rng(seed)
            copies, _ = random_copies(rng, SPACE)
            pools = rng.integers(0, 256, (2, size), np.uint8)
            skew = [int(skew) for skew in rng.choice([0, 0, 16, 1, 8, 13], 2)]
            expected = pools[1].copy()
            for copy in copies:
                if isinstance(copy, CopyPlan):
                    reference.run(copy, pools[0], expected)
                else:
                    reference.run_strided([copy], pools[0], expected)
            there.put(pools[0], skew[0])
            here.put(pools[1], skew[1])
            windows = Window(there.window.address + skew[0], size), Window(here.window.address + skew[1], size)
            run(copier, *windows, copies)
            assert np.array_equal(expected, here.get(size, skew[1])), seed
    copier.close()


@pytest.mark.parametrize("where", ["carried", "uploaded", "never uploaded", "in parts"])
@pytest.mark.parametrize("run_bytes", [16, 256, 4096, 16384, 20000, 4100])
def test_tables_of_every_size(
    device: CudaDevice,
    source_device: CudaDevice,
    kernels: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    run_bytes: int,
) -> None:
    """However its table reaches the device, a shuffle of runs is copied right."""
    if where == "in parts":
        monkeypatch.setattr(cuda_copy, "CAPACITY_BYTES_MAX", 16384)
    if where == "never uploaded":
        monkeypatch.setattr(copy_slots, "UPLOADED_AT", 24)  # the kernel does not look there
    count = 400 if where == "carried" else 5000
    rng = np.random.default_rng(run_bytes)
    bases = [rng.permutation(count).astype(np.int64) * run_bytes for _ in range(2)]
    data = rng.integers(0, 256, (count, run_bytes), np.uint8)
    copier = CudaCopier(device, sm_count_max=None, cache_directory=kernels)
    with memory(source_device, data.size) as there, memory(device, data.size) as here:
        there.put(data)
        device.fill(here.window.address, 0xA5, data.size)
        run(copier, there.window, here.window, [StridedCopy(bases[0], bases[1], (), run_bytes)])
        expected = np.empty_like(data)
        expected[bases[1] // run_bytes] = data[bases[0] // run_bytes]
        assert np.array_equal(expected.ravel(), here.get(data.size))
    copier.close()


@pytest.mark.parametrize("kind", ["bulk", "plain", "flat"])
def test_offsets_beyond_32_bits(device: CudaDevice, source_device: CudaDevice, copier: CudaCopier, kind: str) -> None:
    """Pieces on both sides of 2 and 4 GiB land where they belong."""
    size = (5 << 30) + 4096
    rng = np.random.default_rng(7)
    run_bytes = 1000 if kind == "plain" else 4096
    corners = [0, (1 << 31) - 4096, 1 << 31, (1 << 32) - 4096, 1 << 32, 5 << 30]
    source = np.array(corners, dtype=np.int64)
    destination = np.array(corners[::-1], dtype=np.int64)
    sizes = [4096, 4000, 4095, 17, 1, 4096] if kind == "flat" else [run_bytes] * 6
    copies: list[Copies] = [StridedCopy(source, destination, (), run_bytes)]
    if kind == "flat":
        copies = [CopyPlan(source, destination, np.array(sizes, dtype=np.int64))]
    with memory(source_device, size) as there, memory(device, size) as here:
        pieces = rng.integers(0, 256, (6, 4096), np.uint8)
        for corner, piece in zip(corners, pieces, strict=True):
            there.put(piece, corner)
            here.put(np.full(4096, 0xA5, np.uint8), corner)
        run(copier, there.window, here.window, copies)
        for number, at in enumerate(destination.tolist()):
            expected = np.full(4096, 0xA5, np.uint8)
            expected[: sizes[number]] = pieces[number][: sizes[number]]
            assert np.array_equal(expected, here.get(4096, at)), (number, at)


def test_a_run_longer_than_4_gib(device: CudaDevice, source_device: CudaDevice, copier: CudaCopier) -> None:
    """One run of more than 2**32 bytes is copied whole."""
    size = (4 << 30) + (1 << 20) + 16
    rng = np.random.default_rng(3)
    with memory(source_device, size) as there, memory(device, size) as here:
        device.fill(there.window.address, 0x5A, size)
        device.fill(here.window.address, 0, size)
        marks = {at: rng.integers(0, 256, 64, np.uint8) for at in (0, (1 << 31) - 32, (1 << 32) - 32, size - 64)}
        for at, mark in marks.items():
            there.put(mark, at)
        run(copier, there.window, here.window, [StridedCopy(np.zeros(1, np.int64), np.zeros(1, np.int64), (), size)])
        for at, mark in marks.items():
            assert np.array_equal(mark, here.get(64, at)), at
        assert np.all(here.get(1 << 20, size // 2) == 0x5A)


def test_head_resharding(device: CudaDevice, source_device: CudaDevice, copier: CudaCopier) -> None:
    """A million runs of 256 bytes change from token order to head order."""
    blocks, tokens, heads, run_bytes = 4096, 16, 16, 256
    data = np.random.default_rng(5).integers(0, 256, (blocks, tokens, heads, run_bytes), np.uint8)
    each = tokens * heads * run_bytes
    bases = np.arange(blocks, dtype=np.int64) * each
    axes = (Axis(heads, run_bytes, tokens * run_bytes), Axis(tokens, heads * run_bytes, run_bytes))
    with memory(source_device, data.size) as there, memory(device, data.size) as here:
        there.put(data)
        run(copier, there.window, here.window, [StridedCopy(bases, bases[::-1].copy(), axes, run_bytes)])
        assert np.array_equal(data[::-1].transpose(0, 2, 1, 3).ravel(), here.get(data.size))


def test_a_plan_with_many_shapes_is_one_launch(
    device: CudaDevice, source_device: CudaDevice, copier: CudaCopier
) -> None:
    """Regions of many shapes, aligned or not, go together."""
    copies = []
    at = 0
    for run_bytes in (16, 4096, 33, 20480, 1, 256, 16384, 1001, 48, 8):
        copies.append(StridedCopy(np.arange(9) * run_bytes + at, np.arange(9)[::-1] * run_bytes + at, (), run_bytes))
        at += 9 * run_bytes
    data, poison = np.random.default_rng(9).integers(0, 256, (2, at), np.uint8)
    regions = regions_of(Window(0, at), Window(0, at), copies)
    assert 1 == len(list(copy_table.tables_of(regions, capacity_bytes=1 << 20, warps=1, bulk_from_bytes=256)))
    with memory(source_device, at) as there, memory(device, at) as here:
        there.put(data)
        here.put(poison)
        run(copier, there.window, here.window, copies)
        expected = poison.copy()
        reference.run_strided(copies, data, expected)
        assert np.array_equal(expected, here.get(at))


def test_nothing_is_done_at_once(copier: CudaCopier) -> None:
    """A plan of no byte is done without a launch."""
    job = copier.submit(Window(0, 0), Window(0, 0), [concatenated([])])
    assert (True, 0) == (job.done, job.copied_bytes)
