"""host:port addresses."""

from kvferry.core.errors import ConfigInvalid

PORT_MAX = 65_535


def check_address(field: str, address: str) -> tuple[str, int]:
    """Split ``host:port`` or ``[v6]:port``.

    Raises:
        ConfigInvalid: it is neither; names ``field`` and the value.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
        raise ConfigInvalid.of_field(field, address, f"must be host:port with a port of 0 to {PORT_MAX}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ConfigInvalid.of_field(field, address, "an IPv6 host must stand in brackets")
    return host, int(port)


def with_port(address: str, port: int) -> str:
    """``address`` with its port replaced."""
    return f"{address.rpartition(':')[0]}:{port}"
