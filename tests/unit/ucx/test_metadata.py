"""What a UCX agent tells its readers is read exactly, or refused."""

import struct
import zlib

import pytest

from kvferry.core.errors import InvalidArgument
from kvferry_dataplane.transports.memory import Region
from kvferry_dataplane.ucx_metadata import (
    ADDRESS_BYTES_MAX,
    REGIONS_MAX,
    AgentMetadata,
    KeyedRegion,
    pack_metadata,
    parse_metadata,
)

POOL = KeyedRegion(Region("VRAM", 0x7F0000000000, 40 << 30, 3), b"pool key")
TABLE = KeyedRegion(Region("DRAM", 4096, 1 << 17), b"table key")
AGENT = AgentMetadata("ä" * 20, (1, 22, 0), b"h" * 16, b"address" * 30, (POOL, TABLE))


def summed(content: bytes) -> bytes:
    """The same with the sum that belongs to it."""
    return content + struct.pack("<I", zlib.crc32(content))


def test_everything_comes_back() -> None:
    """What was packed is what is parsed."""
    assert AGENT == parse_metadata(pack_metadata(AGENT))


def test_every_cut_is_noticed() -> None:
    """However much of it arrives, unless it is all, it is refused as what it is."""
    whole = pack_metadata(AGENT)
    for size in range(len(whole)):
        with pytest.raises(InvalidArgument) as caught:
            parse_metadata(whole[:size])
        assert "access.agent_metadata" == caught.value.metadata["field"]


def test_every_cut_is_noticed_without_the_sum() -> None:
    """A sender that sums what is too short finds the parser inside its bounds all the same."""
    content = pack_metadata(AGENT)[:-4]
    for size in range(4, len(content)):
        with pytest.raises(InvalidArgument):
            parse_metadata(summed(content[:size]))


def test_every_changed_byte_is_noticed() -> None:
    """No byte can change on the way, since UCX looks at none of them twice."""
    whole = pack_metadata(AGENT)
    for at in range(len(whole)):
        with pytest.raises(InvalidArgument):
            parse_metadata(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])


@pytest.mark.parametrize(
    ("agent", "why"),
    [
        (AgentMetadata("a", (1, 22, 0), b"", b"x" * (ADDRESS_BYTES_MAX + 1), (TABLE,)), "more than 16384"),
        (AgentMetadata("a", (1, 22, 0), b"", b"x", ()), "1 to 8 regions"),
        (AgentMetadata("a", (1, 22, 0), b"", b"x", (TABLE,) * (REGIONS_MAX + 1)), "1 to 8 regions"),
        (AgentMetadata("", (1, 22, 0), b"", b"x", (TABLE,)), "lacks name"),
        (AgentMetadata("a", (1, 22, 0), b"h" * 65, b"x", (TABLE,)), "more than 64"),
        (AgentMetadata("a", (1, 22, 0), b"", b"x", (KeyedRegion(Region("DRAM", 1, 0), b"k"),)), "cannot be"),
        (AgentMetadata("a", (1, 22, 0), b"", b"x", (KeyedRegion(Region("DRAM", 1, 1), b""),)), "cannot be"),
        (AgentMetadata("a", (1, 22, 0), b"", b"x", (KeyedRegion(Region("DRAM", 8, (1 << 63) - 8), b"k"),)), "cannot"),
    ],
)
def test_bounds_hold(agent: AgentMetadata, why: str) -> None:
    """What is whole and summed but beyond a bound is refused, and says which."""
    with pytest.raises(InvalidArgument, match=why):
        parse_metadata(pack_metadata(agent))


def test_another_format_is_refused() -> None:
    """A later format is named, not guessed at."""
    content = bytearray(pack_metadata(AGENT)[:-4])
    content[4] = 2
    with pytest.raises(InvalidArgument, match="has format 2, and this data plane knows 1"):
        parse_metadata(summed(bytes(content)))
    with pytest.raises(InvalidArgument, match="goes on past its end"):
        parse_metadata(summed(pack_metadata(AGENT)[:-4] + b"more"))


def test_another_transports_metadata_is_refused() -> None:
    """NIXL's is none of it."""
    with pytest.raises(InvalidArgument, match="is not of a UCX agent"):
        parse_metadata(b"nixlSerDes|" + b"x" * 400)
