"""Two keys come to one transport, or are refused."""

import pytest

from kvferry.core.backends import Backend, NixlBackend, Transport, resolve_transport
from kvferry.core.errors import ConfigInvalid


@pytest.mark.parametrize(
    ("backend", "nixl_backend", "transport"),
    [
        (Backend.DEFAULT, None, Transport.NIXL_UCX),
        (Backend.DEFAULT, NixlBackend.UCX, Transport.NIXL_UCX),
        (Backend.DEFAULT, NixlBackend.LIBFABRIC, Transport.NIXL_LIBFABRIC),
        (Backend.NIXL, None, Transport.NIXL_UCX),
        (Backend.NIXL, NixlBackend.UCX, Transport.NIXL_UCX),
        (Backend.NIXL, NixlBackend.LIBFABRIC, Transport.NIXL_LIBFABRIC),
        (Backend.UCX, None, Transport.UCX),
    ],
)
def test_both_keys_come_to_one_transport(
    backend: Backend, nixl_backend: NixlBackend | None, transport: Transport
) -> None:
    """DEFAULT is NIXL, and NIXL stands on UCX unless it is told otherwise."""
    assert transport is resolve_transport(backend, nixl_backend)


@pytest.mark.parametrize("nixl_backend", NixlBackend)
def test_a_nixl_backend_beside_ucx_is_refused(nixl_backend: NixlBackend) -> None:
    """Nobody finds out later that his nixl_backend was ignored."""
    with pytest.raises(ConfigInvalid, match="backend is UCX") as caught:
        resolve_transport(Backend.UCX, nixl_backend)
    assert {"field": "nixl_backend", "value": nixl_backend.value} == caught.value.metadata
