"""Opens the library of the configured transport; no other is imported."""
# ruff: noqa: PLC0415 - a library that is not wanted may be missing

from kvferry.core.backends import Transport
from kvferry.device import cuda
from kvferry_dataplane.transports.transport import TransportLibrary


def open_library(transport: Transport, *, for_cuda: bool, ucx_library: str | None = None) -> TransportLibrary:
    """The library, set up for host memory or for pools on a GPU too.

    ``ucx_library``: the file of UCX that direct UCX takes; None: the one that is found.

    Raises:
        ConfigInvalid: it, or something that it needs, is missing.
    """
    match transport:
        case Transport.NIXL_UCX:
            from kvferry_dataplane.nixl_agent import NixlLibrary

            return NixlLibrary.with_ucx(for_cuda=for_cuda, cuda_major=cuda.bindings_major())
        case Transport.NIXL_LIBFABRIC:
            from kvferry_dataplane.transports.nixl_libfabric import LibfabricLibrary

            return LibfabricLibrary(for_cuda=for_cuda, cuda_major=cuda.bindings_major())
        case Transport.UCX:
            from kvferry_dataplane.ucx_agent import UcxLibrary

            return UcxLibrary(for_cuda=for_cuda, file=ucx_library)
