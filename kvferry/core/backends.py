"""What moves bytes between hosts, and how the two keys that users know resolve to it. Pure.

Nothing else resolves them.
"""

from enum import StrEnum

from kvferry.core.errors import ConfigInvalid


class Transport(StrEnum):
    """What moves bytes between hosts, as results and listings name it."""

    NIXL_UCX = "nixl/UCX"
    NIXL_LIBFABRIC = "nixl/LIBFABRIC"
    UCX = "ucx"
    """UCX by itself, without NIXL."""

    @property
    def method(self) -> str:
        """`nixl` or `ucx`: the path that its reads are counted under."""
        return "ucx" if self is Transport.UCX else "nixl"

    @property
    def backend(self) -> str:
        """What the method stands on: `UCX` or `LIBFABRIC`."""
        return "LIBFABRIC" if self is Transport.NIXL_LIBFABRIC else "UCX"


class Backend(StrEnum):
    """The key ``backend``."""

    DEFAULT = "DEFAULT"
    """NIXL with UCX."""
    NIXL = "NIXL"
    UCX = "UCX"


class NixlBackend(StrEnum):
    """The key ``nixl_backend``: what NIXL stands on."""

    UCX = "UCX"
    LIBFABRIC = "LIBFABRIC"


def resolve_transport(backend: Backend, nixl_backend: NixlBackend | None) -> Transport:
    """The one transport that both keys come to; None: ``nixl_backend`` is not set.

    Raises:
        ConfigInvalid: ``nixl_backend`` beside a ``backend`` without NIXL.
    """
    if backend is Backend.UCX:
        if nixl_backend is not None:
            why = "goes with backend NIXL or DEFAULT only, and backend is UCX: leave one of the two out"
            raise ConfigInvalid.of_field("nixl_backend", nixl_backend.value, why)
        return Transport.UCX
    return Transport.NIXL_LIBFABRIC if nixl_backend is NixlBackend.LIBFABRIC else Transport.NIXL_UCX
