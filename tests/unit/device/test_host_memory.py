"""Shared host memory and what is known about how much there is."""

import mmap
import os
import socket
from pathlib import Path

import pytest

from kvferry.core.errors import ConfigInvalid, PoolTooLarge, TransportFailed
from kvferry.device.descriptors import MESSAGE_BYTES_MAX, receive_offer, send_offer
from kvferry.device.memfd import create_shared_memory, map_shared_memory, reopen_read_only
from kvferry.device.memory_limits import available_memory_bytes


def test_two_mappings_share_bytes() -> None:
    """What one mapping writes, the other reads, and a read-only descriptor cannot be mapped for writing."""
    memory = create_shared_memory("test", 1 << 16)
    other = map_shared_memory(memory.descriptor, 1 << 16)
    other[5:8] = b"abc"
    assert b"abc" == memory.mapping[5:8]
    read_only = reopen_read_only(memory.descriptor)
    with pytest.raises(TransportFailed):
        map_shared_memory(read_only, 1 << 16)
    assert b"abc" == map_shared_memory(read_only, 1 << 16, writable=False)[5:8]
    os.close(read_only)
    other.close()
    memory.close()


def test_nobody_can_truncate_the_memory() -> None:
    """The descriptor is sealed: a process that has it cannot change the size under the others."""
    memory = create_shared_memory("test", 1 << 16)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.descriptor, mmap.PAGESIZE)
    memory.close()


def test_a_pool_larger_than_memory_is_refused() -> None:
    """The refusal names the field, the size asked for and the memory available."""
    with pytest.raises(PoolTooLarge) as caught:
        create_shared_memory("test", 1 << 50)
    assert {"field", "value", "available_bytes"} == set(caught.value.metadata)
    assert str(1 << 50) in caught.value.message
    assert caught.value.metadata["available_bytes"] in caught.value.message


def test_a_size_must_be_positive() -> None:
    """No memory of no bytes."""
    with pytest.raises(ConfigInvalid):
        create_shared_memory("test", 0)


def test_a_smaller_descriptor_is_refused() -> None:
    """A descriptor that holds less than was offered is not mapped."""
    memory = create_shared_memory("test", 1 << 16)
    with pytest.raises(TransportFailed):
        map_shared_memory(memory.descriptor, 1 << 17)
    memory.close()


@pytest.mark.parametrize(
    ("limit", "used", "inactive", "expected"),
    [("max", 0, 0, 4096 * 1024), ("1000000", 400000, 1000, 601000), ("1000", 5000, 0, 0)],
)
def test_control_group_limits_count(tmp_path: Path, limit: str, used: int, inactive: int, expected: int) -> None:
    """The smallest of the machine's memory and every group's limit holds; cache that can be dropped counts as free."""
    group = tmp_path / "cgroup" / "a"
    (group / "b").mkdir(parents=True)
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4096 kB\n")
    (tmp_path / "self" / "cgroup").write_text("0::/a/b\n")
    (group / "memory.max").write_text(limit)
    (group / "memory.current").write_text(str(used))
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
    assert expected == available_memory_bytes(tmp_path, tmp_path / "cgroup")


def test_an_offer_carries_its_descriptor() -> None:
    """Message and descriptor arrive together, the descriptor as one of the receiver's own."""
    left, right = socket.socketpair()
    memory = create_shared_memory("test", 1 << 16)
    send_offer(left, b"hello", memory.descriptor)
    message, descriptor = receive_offer(right)
    assert b"hello" == message
    assert descriptor is not None
    assert os.fstat(memory.descriptor).st_ino == os.fstat(descriptor).st_ino
    os.close(descriptor)
    memory.close()
    left.close()
    right.close()


@pytest.mark.parametrize(
    "sent", [b"", b"\x05\x00", b"\x05\x00\x00\x00abc", (MESSAGE_BYTES_MAX + 1).to_bytes(4, "little")]
)
def test_a_broken_offer_is_refused(sent: bytes) -> None:
    """An offer that ends early, or announces more than an offer may have, is a typed error."""
    left, right = socket.socketpair()
    left.sendall(sent)
    left.close()
    with pytest.raises(TransportFailed):
        receive_offer(right)
    right.close()
