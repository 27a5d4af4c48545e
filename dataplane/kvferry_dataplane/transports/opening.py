"""Opens the library of the configured transport; no other is imported."""
# ruff: noqa: PLC0415 - a library that is not wanted may be missing

from kvferry.core.backends import Transport
from kvferry.core.errors import ConfigInvalid
from kvferry.device import cuda
from kvferry_dataplane.transports.transport import TransportLibrary


def open_library(transport: Transport, *, for_cuda: bool) -> TransportLibrary:
    """The library, set up for host memory or for pools on a GPU too.

    Raises:
        ConfigInvalid: it, or something that it needs, is missing.
    """
    match transport:
        case Transport.NIXL_UCX:
            from kvferry_dataplane.nixl_agent import NixlLibrary

            return NixlLibrary(for_cuda=for_cuda, cuda_major=cuda.bindings_major())
        case Transport.NIXL_LIBFABRIC | Transport.UCX:
            raise ConfigInvalid.of_field("backend", transport.value, "this data plane does not have it")
