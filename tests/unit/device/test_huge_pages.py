"""Huge pages are asked for where the system allows it, and reported as they were granted."""

import mmap
import os
from pathlib import Path

import pytest

from kvferry.device.huge_pages import HUGE_PAGE_BYTES, address_of, advise_huge_pages, huge_mapped_bytes
from kvferry.device.memfd import create_shared_memory, map_shared_memory, reopen_read_only

SIZE = 4 * HUGE_PAGE_BYTES


@pytest.mark.parametrize(
    ("setting", "refusal"),
    [
        ("always within_size [advise] never deny force\n", ""),
        ("[always] within_size advise never deny force\n", ""),
        (
            "always within_size advise [never] deny force\n",
            "transparent huge pages of shared memory are set to 'never'",
        ),
        ("\n", "transparent huge pages of shared memory are set to ''"),
    ],
)
def test_the_setting_decides(tmp_path: Path, setting: str, refusal: str) -> None:
    """Huge pages are asked for only where the system's setting can grant them; else the setting is told."""
    (tmp_path / "shmem_enabled").write_text(setting)
    with mmap.mmap(-1, SIZE) as mapping:
        assert refusal == advise_huge_pages(mapping, tmp_path / "shmem_enabled")


def test_without_a_setting_there_are_none(tmp_path: Path) -> None:
    """A kernel without transparent huge pages is told as such."""
    with mmap.mmap(-1, SIZE) as mapping:
        assert "No such file" in advise_huge_pages(mapping, tmp_path / "missing")


def test_small_memory_needs_none() -> None:
    """What does not fill a huge page is left on ordinary ones."""
    with mmap.mmap(-1, HUGE_PAGE_BYTES - mmap.PAGESIZE) as mapping:
        assert "do not fill a huge page" in advise_huge_pages(mapping)


def test_only_the_mapping_counts(tmp_path: Path) -> None:
    """Huge pages of other mappings of the process are not counted, all kinds of shared memory are."""
    with mmap.mmap(-1, SIZE) as mapping:
        start = address_of(mapping)
        parts = [
            (start - SIZE, start, 512, 0),
            (start, start + HUGE_PAGE_BYTES, 2048, 0),
            (start + HUGE_PAGE_BYTES, start + SIZE, 2048, 4096),
            (start + SIZE, start + 2 * SIZE, 512, 512),
        ]
        text = "".join(
            f"{low:x}-{high:x} rw-s 00000000 00:01 7 /memfd:x (deleted)\nRss: 9 kB\nShmemPmdMapped: {shmem} kB\n"
            f"FilePmdMapped: {file} kB\nVmFlags: rd wr\n"
            for low, high, shmem, file in parts
        )
        (tmp_path / "smaps").write_text(text)
        assert 8192 * 1024 == huge_mapped_bytes(mapping, tmp_path / "smaps")


def test_what_the_kernel_granted_is_told() -> None:
    """After all memory was touched, what is reported agrees with the refusal, and the memory still works."""
    memory = create_shared_memory("test", SIZE)
    memory.mapping[:: mmap.PAGESIZE] = b"\1" * (SIZE // mmap.PAGESIZE)
    assert bool(memory.huge_page_bytes) != bool(memory.huge_page_refusal)
    assert memory.huge_page_bytes <= SIZE
    memory.close()


def test_memory_on_huge_pages_is_handed_over_read_only() -> None:
    """A reader maps a read-only descriptor of memory of whole huge pages, and sees its bytes."""
    memory = create_shared_memory("test", SIZE)
    memory.mapping[SIZE - 3 :] = b"abc"
    read_only = reopen_read_only(memory.descriptor)
    with map_shared_memory(read_only, SIZE, writable=False) as reader:
        assert b"abc" == reader[SIZE - 3 :]
        with pytest.raises(TypeError):
            reader[0] = 1
    os.close(read_only)
    memory.close()
