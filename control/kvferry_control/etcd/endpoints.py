"""One channel per endpoint, and which endpoint is asked next."""

from collections.abc import Sequence
from typing import TypeAlias

import grpc

from kvferry_control.etcd.config import EtcdOptions
from kvferry_control.etcd.errors import EtcdConfigError

Metadata = Sequence[tuple[str, str]]
RawUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
RawStream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"

_MESSAGE_BYTES_MAX = 16 << 20

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A frozen server keeps its connections open. Pings notice it, and only with ping_timeout_ms; etcd closes
    # connections that ping more often than every 5 s, so anything faster is the caller's own time-out.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    # A member that comes back should be used at once; the default waits for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
    # Connections are not shared between clients, so that closing one never disturbs another.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


class Endpoint:
    """One member of etcd. The channel is opened on first use and again after :meth:`reset`."""

    def __init__(self, address: str, options: EtcdOptions) -> None:
        self.address = address
        self._options = options
        self._channel: grpc.aio.Channel | None = None
        self._unary: dict[str, RawUnary] = {}

    def unary(self, path: str) -> RawUnary:
        """A unary method that takes and gives serialized messages."""
        if path not in self._unary:
            self._unary[path] = self._open().unary_unary(path)
        return self._unary[path]

    def stream(self, path: str) -> RawStream:
        """A bidirectional method that takes and gives serialized messages."""
        return self._open().stream_stream(path)

    async def reset(self) -> None:
        """Drop the channel; the next use opens a new one and reads certificate files again."""
        channel, self._channel = self._channel, None
        self._unary.clear()
        if channel is not None:
            await channel.close()

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            options = list(_CHANNEL_OPTIONS)
            if self._options.tls:
                credentials = _credentials(self._options)
                self._channel = grpc.aio.secure_channel(self.address, credentials, options=options)
            else:
                self._channel = grpc.aio.insecure_channel(self.address, options=options)
        return self._channel


class EndpointPool:
    """All endpoints. Everybody uses the current one until somebody sees it fail."""

    def __init__(self, options: EtcdOptions) -> None:
        self._endpoints = tuple(Endpoint(address, options) for address in options.addresses)
        self._index = 0

    def __len__(self) -> int:
        return len(self._endpoints)

    @property
    def current(self) -> Endpoint:
        """The endpoint to ask."""
        return self._endpoints[self._index]

    def move_on_from(self, failed: Endpoint) -> None:
        """Choose the next endpoint, unless somebody else has left the failed one already."""
        if self.current is failed:
            self._index = (self._index + 1) % len(self._endpoints)

    async def close(self) -> None:
        """Close all channels; calls under way fail."""
        for endpoint in self._endpoints:
            await endpoint.reset()


def _credentials(options: EtcdOptions) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_read(options, "ca_file"),
        private_key=_read(options, "key_file"),
        certificate_chain=_read(options, "cert_file"),
    )


def _read(options: EtcdOptions, field: str) -> bytes | None:
    path = getattr(options, field)
    if path is None:
        return None
    try:
        data: bytes = path.read_bytes()
    except OSError as error:
        raise EtcdConfigError(field, str(path), error.strerror or "cannot be read") from error
    return data
