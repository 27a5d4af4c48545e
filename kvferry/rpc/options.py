"""Options of every gRPC channel and server: message bounds, and a keep-alive that notices a frozen peer.

``grpc.keepalive_time_ms`` and ``grpc.keepalive_timeout_ms`` alone do not notice a stopped process; the transport's own
ping time-out (``grpc.http2.ping_timeout_ms``) does. A server must also be told to accept pings that frequent.
"""

from typing import Final

MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest message either side accepts."""

KEEPALIVE_TIME_MS: Final = 1_000
PING_TIMEOUT_MS: Final = 1_000
CONNECT_MS: Final = 1_000
"""How long the first words of both sides may take on a new connection."""

Options = list[tuple[str, int]]

_COMMON: Options = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def channel_options() -> Options:
    """Options for a client channel; a lost server is tried again after 0.1 to 1 s."""
    return [
        *_COMMON,
        ("grpc.initial_reconnect_backoff_ms", 100),
        # How long an attempt may take, whatever its name says; after one that is refused the next comes all the same.
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]


def server_options() -> Options:
    """Options for a server; it shares its port with no other process."""
    return [
        *_COMMON,
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]
