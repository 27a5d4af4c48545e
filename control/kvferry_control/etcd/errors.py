"""What can go wrong with etcd, split by who must act.

::

    EtcdError
    ├── EtcdConfigError            the operator: an option is wrong (named with its value)
    ├── EtcdUnavailable            nobody yet: no endpoint answered in time, trying again may help
    │   └── EtcdTlsFailed          the operator: the TLS handshake failed
    ├── EtcdAuthFailed             the operator: user, password or token refused
    │   └── EtcdPermissionDenied   the operator: the user may not touch this key
    └── EtcdRejected               the caller: etcd understood the request and said no
        ├── EtcdCompacted          list again, the revision asked for is forgotten
        ├── EtcdFutureRevision     list again, the revision asked for is not there (any more)
        ├── EtcdLeaseNotFound      the lease has expired or was revoked
        ├── EtcdLeaseExists        the lease number is taken
        ├── EtcdAnswerTooLarge     ask for less at a time
        └── EtcdListingTooLong     more keys under a prefix than the caller allowed
"""


class EtcdError(Exception):
    """Any failure of etcd or of talking to it.

    ``endpoint`` is the ``host:port`` that answered last (empty if none was asked), ``key`` the key or prefix,
    or what else the call was about, ``detail`` etcd's or the transport's own words.
    """

    def __init__(self, detail: str, *, endpoint: str = "", key: str = "") -> None:
        place = f" at {endpoint}" if endpoint else ""
        subject = f" for {key!r}" if key else ""
        super().__init__(f"etcd{place}{subject}: {detail}")
        self.detail = detail
        self.endpoint = endpoint
        self.key = key


class EtcdConfigError(EtcdError):
    """An option has an unusable value."""

    def __init__(self, field: str, value: object, detail: str) -> None:
        super().__init__(f"option {field}={value!r}: {detail}")
        self.field = field
        self.value = value


class EtcdUnavailable(EtcdError):
    """No endpoint answered in time. A write may or may not have been applied."""


class EtcdTlsFailed(EtcdUnavailable):
    """The TLS handshake failed: wrong authority, name or client certificate, or a server without TLS."""


class EtcdAuthFailed(EtcdError):
    """The credentials were refused, or are missing."""


class EtcdPermissionDenied(EtcdAuthFailed):
    """The user is known but may not touch the key."""


class EtcdRejected(EtcdError):
    """The request was understood and refused; the same request would be refused again."""


class EtcdCompacted(EtcdRejected):
    """The revision asked for is older than the history that etcd keeps."""


class EtcdFutureRevision(EtcdRejected):
    """The revision asked for is newer than the store."""


class EtcdLeaseNotFound(EtcdRejected):
    """The lease has expired, was revoked, or was lost with the store's data."""


class EtcdLeaseExists(EtcdRejected):
    """A lease with the number asked for exists already."""


class EtcdAnswerTooLarge(EtcdRejected):
    """The answer is larger than this client takes in one message."""


class EtcdListingTooLong(EtcdRejected):
    """A prefix holds more keys than the caller allowed."""
