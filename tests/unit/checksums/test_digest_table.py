"""What the CUDA digest is told, up to its launch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from kvferry.core.checksums.formula import word_keys
from kvferry.core.checksums.regions import DigestRegion, check_region
from kvferry.core.errors import ConfigInvalid, InvalidArgument
from kvferry.device.cuda import compiler_version
from kvferry.device.cuda_digest import digest_macros, digest_source
from kvferry.device.cuda_program import compiled
from kvferry.device.digest_table import ARGUMENTS, UNITS, launches_of
from tests.unit.checksums.reference import Bytes, sums_of
from tests.unit.checksums.regions import regions
from tests.unit.checksums.test_digest import small_region


@given(regions(), st.integers(1, 4000))
@settings(max_examples=50, deadline=None)
def test_launches_sum_the_region(drawn: tuple[DigestRegion, Bytes], bytes_max: int) -> None:
    """However a region is cut into launches, their sums, added at their rows, are its own."""
    region, memory = drawn
    found = np.zeros((region.row_count, region.cell_offsets.size), dtype=np.uint64)
    for launch in launches_of(region, bytes_max):
        assert launch.region.bases.size == 1 or launch.region.total_bytes <= bytes_max
        assert launch.rows.size * launch.region.cell_offsets.size * 8 == launch.sums_bytes
        found[launch.rows] += sums_of(memory, launch.region)
    assert sums_of(memory, region).tolist() == found.tolist()


@given(regions())
@settings(max_examples=30, deadline=None)
def test_a_launch_finds_its_lists_in_the_table(drawn: tuple[DigestRegion, Bytes]) -> None:
    """The addresses in the kernel's arguments lead to the lists, and enough lanes go over every chunk."""
    region, _ = drawn
    for launch in launches_of(region):
        table = launch.table()
        arguments = dict(zip(ARGUMENTS, launch.arguments(5, 1 << 20, 7).tolist(), strict=True))
        for name in ("bases", "tokens", "counts", "rows", "cell_offsets", "cell_keys"):
            expected = getattr(launch.region, name)
            at = arguments[name] - (1 << 20)
            assert expected.tolist() == table[at : at + expected.nbytes].view(expected.dtype).tolist()
        at = arguments["word_keys"] - (1 << 20)
        assert 0 == at
        assert word_keys().tolist() == table[: word_keys().nbytes].view(np.uint32).tolist()
        chunks = -(-region.run_elements * region.element_bytes // 1024)
        assert launch.items_per_cell * UNITS >= int(launch.region.counts.max()) * chunks
        assert 4 <= launch.lanes <= 32
        assert (5, 7) == (arguments["pool"], arguments["sums"])


def test_plain_launches_are_those_of_whole_vectors() -> None:
    """Runs of whole vectors at aligned addresses are plain; shifted, strided, odd and long ones are not."""
    region, _ = small_region(head_dim=8)
    (launch,) = launches_of(region)
    assert launch.is_plain(1 << 20)
    assert not launch.is_plain((1 << 20) + 8)
    for change in ({"dim_stride": 4}, {"run_elements": 9}, {"run_elements": 1024}, {"token_stride": 24}):
        (other,) = launches_of(replace(region, **change))  # type: ignore[arg-type]
        assert not other.is_plain(1 << 20)


@given(regions())
@settings(max_examples=30, deadline=None)
def test_regions_inside_their_pool_pass(drawn: tuple[DigestRegion, Bytes]) -> None:
    """Whatever is in a pool passes, and does not in a pool that ends before its last byte."""
    region, memory = drawn
    check_region(region, memory.size)
    if region.bases.size:
        spans = (region.counts - 1) * region.token_stride + int(region.cell_offsets.max()) + region.bases
        end = int(spans.max()) + (region.run_elements - 1) * region.dim_stride + region.element_bytes
        check_region(region, end)
        with pytest.raises(InvalidArgument):
            check_region(region, end - 1)


@pytest.mark.parametrize(
    "change",
    [
        {"bases": np.array([-1])},
        {"rows": np.array([1])},
        {"counts": np.array([1 << 29])},
        {"tokens": np.array([-1])},
        {"token_stride": 0},
        {"run_elements": 1 << 40},
        {"bases": np.array([0, 0])},
    ],
)
def test_regions_out_of_bounds_are_refused(change: dict[str, object]) -> None:
    """A segment, row or shape that is out of bounds is refused."""
    region, memory = small_region()
    with pytest.raises(InvalidArgument):
        check_region(replace(region, **change), memory.size)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_the_kernel_compiles(tmp_path: Path, architecture: str) -> None:
    """The kernel compiles for old and new devices, and its structure has the size that is written."""
    pytest.importorskip("cuda.core")
    try:
        compiler_version()
    except ConfigInvalid as error:
        pytest.skip(error.message)
    image = compiled("digest.cu", digest_source(), architecture, digest_macros(), tmp_path)
    assert b"digest_any" in image
    assert b"digest_plain" in image
