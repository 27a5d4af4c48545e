"""What the native core copies, against the same copies done by numpy."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from kvferry.core.errors import ConfigInvalid
from kvferry.core.planning.copies import CopyPlan, StridedCopy
from kvferry.device.native import HostCopier, Tuning, ceiling_copy, instruction_sets
from tests.unit.native.memory import Bytes, copier, copy, flat, guarded, sparse, strided, window
from tests.unit.planning import reference

ODD_SIZES = (1, 2, 3, 7, 8, 15, 63, 64, 65, 127, 255, 257, 511, 512, 513, 1023, 4095, 4096, 4097, 16383, 20001, 70001)


def random_bytes(size: int, seed: int) -> Bytes:
    """Bytes that differ from their neighbours."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


@st.composite
def copy_plans(draw: st.DrawFn) -> tuple[CopyPlan, int, int]:
    """Runs of any sizes and alignments that write no byte twice, and the sizes of the two memories."""
    lengths = draw(st.lists(st.one_of(st.integers(0, 80), st.integers(400, 700), st.integers(4000, 9000)), max_size=40))
    gaps = draw(st.lists(st.integers(0, 70), min_size=len(lengths), max_size=len(lengths)))
    ends = np.cumsum(np.array(lengths, dtype=np.int64) + np.array(gaps, dtype=np.int64))
    starts = ends - np.array(lengths, dtype=np.int64)
    source_size = max(lengths, default=0) + draw(st.integers(0, 5000))
    pieces = [
        (draw(st.integers(0, source_size - length)), int(start), length)
        for start, length in zip(starts, lengths, strict=True)
    ]
    order = draw(st.permutations(range(len(pieces))))
    return flat(*(pieces[index] for index in order)), source_size, int(ends[-1]) if pieces else 0


@st.composite
def strided_copies(draw: st.DrawFn) -> tuple[StridedCopy, int, int]:
    """Regions with strides of either sign that write no byte twice, and the sizes of the two memories."""
    run_bytes = draw(st.one_of(st.integers(0, 40), st.integers(500, 1300)))
    lengths = draw(st.lists(st.integers(0, 5), max_size=4))
    axes, extent = [], run_bytes
    reach = [0, 0]  # how far below and above its base a source region goes
    below = 0
    for length in reversed(lengths):
        step = draw(st.one_of(st.just(extent), st.integers(extent, extent + 50)))
        forward = draw(st.booleans())
        source_step = draw(st.one_of(st.just(step), st.integers(-300, 300), st.just(0)))
        axes.append((length, source_step, step if forward else -step))
        far = max(length - 1, 0)
        reach[source_step > 0] += far * source_step
        below += 0 if forward else far * step
        extent += far * step
    count = draw(st.integers(0, 4))
    bases = [(-reach[0] + draw(st.integers(0, 100)), number * extent + below) for number in range(count)]
    sizes = -reach[0] + reach[1] + run_bytes + 100, count * extent
    return strided(bases, axes[::-1], run_bytes), *sizes


def check_all(copies: CopyPlan | StridedCopy, source_size: int, size: int, chunk: int, isa: str) -> None:
    """Streamed and cached, by threads, every byte is as numpy says."""
    source, before = random_bytes(source_size, 1), random_bytes(size, 2)
    expected = before.copy()
    if isinstance(copies, CopyPlan):
        reference.run(copies, source, expected)
    elif copies.run_bytes and all(axis.length for axis in copies.axes):
        reference.run_strided([copies], source, expected)
    for stream_bytes_min in (1, 1 << 40):
        actual = before.copy()
        used = copier(2, isa, stream_bytes_min=stream_bytes_min, chunk_bytes_max=chunk)
        job = copy(used, [copies], source, actual)
        assert copies.total_bytes == job.copied_bytes
        assert np.array_equal(expected, actual)


@given(copy_plans(), st.sampled_from([1, 100, 4096, 1 << 19]), st.sampled_from(instruction_sets()))
def test_flat_plans(case: tuple[CopyPlan, int, int], chunk: int, isa: str) -> None:
    """Runs of any size and alignment arrive, and nothing else changes, wherever chunks are cut."""
    if chunk == 1 and case[0].total_bytes > 5000:
        chunk = 100
    check_all(*case, chunk, isa)


@given(strided_copies(), st.sampled_from([1, 100, 4096, 1 << 19]), st.sampled_from(instruction_sets()))
def test_strided_copies(case: tuple[StridedCopy, int, int], chunk: int, isa: str) -> None:
    """Regions of any axes arrive, also backwards and from one place to many, wherever chunks are cut."""
    if chunk == 1 and case[0].total_bytes > 5000:
        chunk = 100
    check_all(*case, chunk, isa)


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("size", ODD_SIZES)
def test_nothing_beyond_the_windows_is_touched(isa: str, at_end: bool, size: int) -> None:
    """The pages before and behind both windows are out of bounds, and no instruction touches them."""
    source, destination = guarded(size, at_end=at_end), guarded(size, at_end=at_end)
    source[:] = random_bytes(size, size)
    third = size // 3
    pieces = flat((third, third, size - third), (0, 0, third))
    for stream_bytes_min in (1, 1 << 40):
        destination[:] = 0
        copy(copier(2, isa, stream_bytes_min=stream_bytes_min), [pieces], source, destination)
        assert np.array_equal(source, destination)


@pytest.mark.parametrize("isa", instruction_sets())
def test_offsets_beyond_32_bits(isa: str) -> None:
    """Runs and strides that lie 5 GiB apart arrive."""
    far = 5 << 30
    source, destination = sparse(far + (1 << 20)), sparse(far + (1 << 20))
    source[far : far + 70000] = random_bytes(70000, 3)
    source[:70000] = random_bytes(70000, 4)
    used = copier(2, isa)
    copy(used, [flat((far + 1, 3, 60000), (5, far + 9, 60000))], source, destination)
    assert np.array_equal(source[far + 1 : far + 60001], destination[3:60003])
    assert np.array_equal(source[5:60005], destination[far + 9 : far + 60009])
    copy(used, [strided([(far, 0)], [(2, -far, far)], 999)], source, destination)
    assert np.array_equal(source[far : far + 999], destination[:999])
    assert np.array_equal(source[:999], destination[far : far + 999])


def test_long_runs_by_several_threads() -> None:
    """Runs larger than a step, of a job large enough to go past the caches, arrive as a whole."""
    source, destination = random_bytes((24 << 20) + 77, 5), np.zeros((24 << 20) + 77, dtype=np.uint8)
    with_defaults = HostCopier(2)
    copy(with_defaults, [flat((77, 0, 20 << 20), (0, 20 << 20, 77))], source, destination)
    with_defaults.close()
    assert np.array_equal(source[77 : 77 + (20 << 20)], destination[: 20 << 20])
    assert np.array_equal(source[:77], destination[20 << 20 : (20 << 20) + 77])
    assert not destination[(20 << 20) + 77 :].any()


def test_several_copies_are_one_job() -> None:
    """A job may hold runs and regions; the arrays it was made from may change as soon as it is submitted."""
    source, destination = random_bytes(4096, 6), np.zeros(4096, dtype=np.uint8)
    runs, region = flat((0, 100, 50)), strided([(1000, 2000)], [(3, 10, 20)], 5)
    job = copier().submit(window(source), window(destination), [runs, region, flat()])
    for changed in (runs.source_offsets, runs.destination_offsets, runs.lengths, region.source_bases):
        changed[:] = -1
    assert job.wait(60)
    assert 65 == job.copied_bytes
    assert np.array_equal(source[:50], destination[100:150])
    assert [source[1000 + 10 * i : 1005 + 10 * i].tolist() for i in range(3)] == [
        destination[2000 + 20 * i : 2005 + 20 * i].tolist() for i in range(3)
    ]


@pytest.mark.parametrize("copies", [[], [flat()], [flat(*[(0, 0, 0)] * 5000)], [strided([(0, 0)], [(0, 1, 1)], 9)]])
def test_nothing_to_copy_is_done_at_once(copies: list[CopyPlan | StridedCopy]) -> None:
    """A job of no bytes is done when it is submitted, whatever it consists of."""
    memory = np.zeros(64, dtype=np.uint8)
    job = copier().submit(window(memory[:32]), window(memory[32:]), copies)
    assert job.done
    assert 0 == job.copied_bytes


@pytest.mark.parametrize("non_temporal", [False, True])
@pytest.mark.parametrize("thread_count", [1, 2, 5])
def test_the_ceiling_copies_the_same(non_temporal: bool, thread_count: int) -> None:
    """What the benchmarks measure ratios against copies every byte, also of odd pieces."""
    source, destination = random_bytes(200000, 7), np.zeros(200000, dtype=np.uint8)
    pieces = flat((1, 0, 70001), (70002, 70001, 3), (90000, 80003, 99999), (5, 190011, 500))
    expected = destination.copy()
    reference.run(pieces, source, expected)
    seconds = ceiling_copy(window(source), window(destination), pieces, thread_count, non_temporal=non_temporal)
    assert seconds > 0
    assert np.array_equal(expected, destination)


def test_bad_options_are_refused() -> None:
    """Threads out of bounds, an unknown instruction set and a senseless tuning are named."""
    for field, make in (
        ("thread_count", lambda: HostCopier(0)),
        ("thread_count", lambda: HostCopier(65)),
        ("instruction_set", lambda: HostCopier(1, instruction_set="mmx")),
        ("chunk_bytes_max", lambda: Tuning(chunk_bytes_max=0)),
        ("stream_bytes_min", lambda: Tuning(stream_bytes_min=1 << 63)),
        ("patience_ms", lambda: Tuning(patience_ms=24 * 3600 * 1000 + 1)),
    ):
        with pytest.raises(ConfigInvalid) as caught:
            make()
        assert field == caught.value.metadata["field"]
