"""Direct UCX as a transport: what its agents refuse before UCX sees it."""

import os
from collections.abc import Iterator

import numpy as np
import pytest

from kvferry.core.errors import ConfigInvalid, InvalidArgument
from kvferry_dataplane.transports.memory import Addresses, Region
from kvferry_dataplane.ucx_agent import UcxAgent, UcxLibrary
from kvferry_dataplane.ucx_metadata import parse_metadata

SIZE = 1 << 16
ZERO = np.zeros(SIZE, dtype=np.uint8)
MEMORY = Region("DRAM", ZERO.ctypes.data, SIZE)


@pytest.fixture
def agents() -> Iterator[tuple[UcxAgent, UcxAgent]]:
    """A source, known to a reader."""
    library = UcxLibrary(for_cuda=False)
    source, reader = library.make_agent("source"), library.make_agent("reader")
    source.register(MEMORY)
    reader.register(MEMORY)
    reader.add_peer(source.metadata())
    yield source, reader
    reader.close()
    source.close()


def at(region: Region, offset: int = 0) -> Addresses:
    """One absolute address."""
    return np.array([region.address + offset])


def test_what_is_told_is_what_is_registered(agents: tuple[UcxAgent, UcxAgent]) -> None:
    """Name, release and regions of an agent reach its readers."""
    told = parse_metadata(agents[0].metadata())
    assert ("source", (MEMORY,)) == (told.name, tuple(keyed.region for keyed in told.regions))
    assert UcxLibrary(for_cuda=False).version == ".".join(map(str, told.release))


def test_only_what_was_exposed_is_read(agents: tuple[UcxAgent, UcxAgent]) -> None:
    """A region that the source did not expose, or more of one than there is, is refused."""
    _, reader = agents
    one = np.array([1])
    for beyond in (
        Region("DRAM", MEMORY.address, SIZE + 1),
        Region("DRAM", MEMORY.address - 1, 8),
        Region("DRAM", 1 << 40, 8),
    ):
        with pytest.raises(InvalidArgument, match="none of the registered regions"):
            reader.post_read("source", beyond, at(beyond), MEMORY, at(MEMORY), one)
        with pytest.raises(InvalidArgument, match="none of the registered regions"):
            reader.post_read("source", MEMORY, at(MEMORY), beyond, at(beyond), one)
    with pytest.raises(InvalidArgument, match="leaves the peer's region"):
        reader.post_read("source", MEMORY, at(MEMORY, SIZE), MEMORY, at(MEMORY), one)
    with pytest.raises(InvalidArgument, match="leaves the region"):
        reader.post_read("source", MEMORY, at(MEMORY), MEMORY, at(MEMORY, -1), one)
    assert not reader.is_reading


def test_peers_are_known_once(agents: tuple[UcxAgent, UcxAgent]) -> None:
    """A peer that is known is not learned again, and one that is not cannot be read."""
    source, reader = agents
    with pytest.raises(InvalidArgument, match="is known already"):
        reader.add_peer(source.metadata())
    reader.remove_peer("source")
    with pytest.raises(InvalidArgument, match="is not known"):
        reader.post_read("source", MEMORY, at(MEMORY), MEMORY, at(MEMORY), np.array([1]))
    assert "source" == reader.add_peer(source.metadata())


def test_a_pool_on_a_gpu_is_told_to_ucx_as_such(agents: tuple[UcxAgent, UcxAgent]) -> None:
    """Where UCX has no CUDA, a pool there is refused by name instead of being taken for host memory."""
    with pytest.raises(ConfigInvalid, match="CUDA"):
        agents[0].register(Region("VRAM", MEMORY.address, SIZE, 0))


def test_settings_tell_where_ucx_was_found() -> None:
    """The file is among the settings, which the log and the description of the data plane show."""
    found = {setting.name: setting.value for setting in UcxLibrary(for_cuda=False).settings}
    assert found["ucx_library"].endswith("libucp.so.0")
    assert os.environ["UCX_TCP_TX_SEG_SIZE"] == found["UCX_TCP_TX_SEG_SIZE"]
