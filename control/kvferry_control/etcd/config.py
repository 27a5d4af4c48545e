"""Where etcd is and how to talk to it."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from kvferry_control.etcd.errors import EtcdConfigError

ENDPOINT_COUNT_MAX = 32
LEASE_TTL_S_MAX = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdOptions:
    """Options of one client. Construction raises :class:`EtcdConfigError` that names the bad option.

    ``endpoints`` are ``host:port``, ``http://host:port`` or ``https://host:port``, tried in this order; TLS
    is used if they say https or if any of the three files is given, and then for all of them. ``prefix``
    starts with a slash and does not end with one. ``user`` and ``password`` go together; a client certificate
    can stand in for both.
    """

    endpoints: tuple[str, ...]
    prefix: str = "/kvferry"
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    lease_ttl_s: int = 10
    attempt_timeout_s: float = 1.0
    """Time for one attempt at one endpoint; a longer one stalls writes while a member is down."""
    operation_timeout_s: float = 5.0
    """Time for all attempts of one call together."""
    watch_progress_interval_s: float = 2.0
    """A silent watch asks for a sign of life this often, and moves on after twice that plus one attempt."""
    listing_keys_max: int = 100_000
    listing_page_keys: int = 256

    def __post_init__(self) -> None:
        if not 1 <= len(self.endpoints) <= ENDPOINT_COUNT_MAX:
            raise EtcdConfigError("endpoints", self.endpoints, f"give 1 to {ENDPOINT_COUNT_MAX} endpoints")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        if len({endpoint_scheme(endpoint) for endpoint in self.endpoints} - {""}) > 1:
            raise EtcdConfigError("endpoints", self.endpoints, "either all http or all https")
        if not self.prefix.startswith("/") or self.prefix.endswith("/"):
            raise EtcdConfigError("prefix", self.prefix, "must start with a slash and not end with one")
        self._check_security()
        self._check_numbers()

    def _check_security(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise EtcdConfigError("key_file", self.key_file, "cert_file and key_file go together")
        if self.tls and any(endpoint_scheme(endpoint) == "http" for endpoint in self.endpoints):
            raise EtcdConfigError("endpoints", self.endpoints, "TLS files are given, so endpoints must be https")
        if (self.user is None) != (self.password is None):
            raise EtcdConfigError("user", self.user, "user and password go together")

    def _check_numbers(self) -> None:
        if not 1 <= self.lease_ttl_s <= LEASE_TTL_S_MAX:
            raise EtcdConfigError("lease_ttl_s", self.lease_ttl_s, f"must be 1 to {LEASE_TTL_S_MAX} seconds")
        for name in ("attempt_timeout_s", "operation_timeout_s", "watch_progress_interval_s"):
            if getattr(self, name) <= 0:
                raise EtcdConfigError(name, getattr(self, name), "must be more than 0 seconds")
        for name in ("listing_keys_max", "listing_page_keys"):
            if getattr(self, name) < 1:
                raise EtcdConfigError(name, getattr(self, name), "must be at least 1")

    @property
    def tls(self) -> bool:
        """True if connections are encrypted."""
        https = any(endpoint_scheme(endpoint) == "https" for endpoint in self.endpoints)
        return https or self.ca_file is not None or self.cert_file is not None

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoints as ``host:port``, in order, without repetitions."""
        return tuple(dict.fromkeys(endpoint.rpartition("://")[2] for endpoint in self.endpoints))


def endpoint_scheme(endpoint: str) -> str:
    """``http``, ``https`` or, for a bare ``host:port``, the empty string."""
    return endpoint.partition("://")[0] if "://" in endpoint else ""


def _check_endpoint(endpoint: str) -> None:
    if endpoint_scheme(endpoint) not in ("", "http", "https"):
        raise EtcdConfigError("endpoints", endpoint, "the scheme must be http or https")
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    try:
        port = parts.port
    except ValueError as error:
        raise EtcdConfigError("endpoints", endpoint, "the port must be 1 to 65535") from error
    if not parts.hostname or not port:
        raise EtcdConfigError("endpoints", endpoint, "expected host:port")
    if parts.path or parts.query or parts.username:
        raise EtcdConfigError("endpoints", endpoint, "expected host:port and nothing else")
