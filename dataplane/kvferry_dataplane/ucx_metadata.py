"""What a UCX agent tells its readers, as bytes. Pure.

::

    magic       4 bytes  "KVUX"
    format      u8       1
    release     3 of u8  UCX's major, minor, release
    name        u16 length, UTF-8
    host        u8 length: the kernel that it lives on; empty if that is not known
    address     u16 length: UCX's address of the worker
    count       u8       regions, each:
      segment   u8       0 DRAM, 1 VRAM
      device    u32
      address   u64
      size      u64
      key       u16 length: UCX's key of the region
    sum         u32      CRC-32 of all before

Numbers are little endian. UCX parses addresses and keys without looking where they end, so what was cut or damaged on
the way has to be noticed here; who sent it is up to the channel that it came by.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from kvferry.core.errors import InvalidArgument
from kvferry_dataplane.transports.memory import Region, Segment

_MAGIC = b"KVUX"
_FORMAT = 1
_SEGMENTS: tuple[Segment, ...] = ("DRAM", "VRAM")
NAME_BYTES_MAX = 512
HOST_BYTES_MAX = 64
ADDRESS_BYTES_MAX = 16 * 1024
KEY_BYTES_MAX = 4 * 1024
REGIONS_MAX = 8
_ADDRESS_END = 1 << 63


@dataclass(frozen=True, slots=True)
class KeyedRegion:
    """Memory that readers may read."""

    region: Region
    key: bytes


@dataclass(frozen=True, slots=True)
class AgentMetadata:
    """A UCX agent as its readers know it."""

    name: str
    release: tuple[int, int, int]
    """UCX's major, minor, release."""
    host: bytes
    address: bytes
    regions: Sequence[KeyedRegion]


def pack_metadata(agent: AgentMetadata) -> bytes:
    """The bytes that :func:`parse_metadata` reads."""
    head = _MAGIC + struct.pack("<4B", _FORMAT, *agent.release)
    body = _sized("<H", agent.name.encode()) + _sized("<B", agent.host) + _sized("<H", agent.address)
    body += struct.pack("<B", len(agent.regions))
    for keyed in agent.regions:
        region = keyed.region
        kind = _SEGMENTS.index(region.segment)
        body += struct.pack("<BIQQ", kind, region.device_index, region.address, region.size_bytes)
        body += _sized("<H", keyed.key)
    whole = head + body
    return whole + struct.pack("<I", zlib.crc32(whole))


def parse_metadata(data: bytes) -> AgentMetadata:
    """Check and read a peer's bytes.

    Raises:
        InvalidArgument: they are cut, damaged, of another format, or beyond a bound.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        raise _malformed(data, "is not of a UCX agent")
    whole, total = data[:-4], data[-4:]
    if len(data) < len(_MAGIC) + 4 or struct.pack("<I", zlib.crc32(whole)) != total:
        raise _malformed(data, "was cut or damaged on its way")
    reader = _Reader(whole, len(_MAGIC))
    version, *release = reader.numbers("<4B")
    if version != _FORMAT:
        raise _malformed(data, f"has format {version}, and this data plane knows {_FORMAT}")
    try:
        name = reader.sized("<H", NAME_BYTES_MAX).decode()
    except UnicodeDecodeError as error:
        raise _malformed(data, "has a name that is not UTF-8") from error
    host = reader.sized("<B", HOST_BYTES_MAX)
    address = reader.sized("<H", ADDRESS_BYTES_MAX)
    (count,) = reader.numbers("<B")
    if not name or not address or not 1 <= count <= REGIONS_MAX:
        raise _malformed(data, f"lacks name, address or 1 to {REGIONS_MAX} regions")
    regions = tuple(_region(reader) for _ in range(count))
    reader.expect_end()
    return AgentMetadata(name, cast("tuple[int, int, int]", tuple(release)), host, address, regions)


class _Reader:
    """Reads forwards, never past the end."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self._at = at

    def numbers(self, shape: str) -> tuple[int, ...]:
        return struct.unpack(shape, self._take(struct.calcsize(shape)))

    def sized(self, shape: str, bytes_max: int) -> bytes:
        (size,) = self.numbers(shape)
        if size > bytes_max:
            raise _malformed(self.data, f"has a field of {size} bytes, more than {bytes_max}")
        return self._take(size)

    def expect_end(self) -> None:
        if self._at != len(self.data):
            raise _malformed(self.data, "goes on past its end")

    def _take(self, size: int) -> bytes:
        if len(self.data) - self._at < size:
            raise _malformed(self.data, "ends too early")
        self._at += size
        return self.data[self._at - size : self._at]


def _region(reader: _Reader) -> KeyedRegion:
    kind, device, address, size = reader.numbers("<BIQQ")
    key = reader.sized("<H", KEY_BYTES_MAX)
    if kind >= len(_SEGMENTS) or not key or not address or not size or address + size >= _ADDRESS_END:
        raise _malformed(reader.data, f"has a region of {size} bytes at {address} that cannot be")
    return KeyedRegion(Region(_SEGMENTS[kind], address, size, device), key)


def _sized(shape: str, content: bytes) -> bytes:
    return struct.pack(shape, len(content)) + content


def _malformed(data: bytes, why: str) -> InvalidArgument:
    return InvalidArgument.of_field("access.agent_metadata", f"{len(data)} bytes", why)
