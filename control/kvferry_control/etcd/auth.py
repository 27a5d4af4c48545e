"""The token that stands for user and password, fetched once and again whenever etcd has forgotten it."""

import asyncio

import grpc

from kvferry_control.etcd import wire
from kvferry_control.etcd.config import EtcdOptions
from kvferry_control.etcd.endpoints import Endpoint, Metadata
from kvferry_control.etcd.errors import EtcdUnavailable
from kvferry_control.etcd.translate import translate

# A member without a leader must fail rather than serve a view that may be stale for ever.
_REQUIRE_LEADER = ("hasleader", "true")


class TokenSource:
    """Metadata for every call. Several calls that find the token stale together fetch one new token."""

    def __init__(self, options: EtcdOptions) -> None:
        self._user = options.user
        self._password = options.password
        self._token: str | None = None
        self._fetching = asyncio.Lock()

    @property
    def enabled(self) -> bool:
        """True if calls carry a token."""
        return self._user is not None

    async def metadata(self, endpoint: Endpoint, timeout_s: float) -> Metadata:
        """Metadata for a call, with a token fetched from ``endpoint`` if there is none yet.

        Raises :class:`EtcdAuthFailed` or :class:`EtcdUnavailable`.
        """
        if self._user is None or self._password is None:
            return (_REQUIRE_LEADER,)
        try:
            async with asyncio.timeout(timeout_s), self._fetching:
                if self._token is None:
                    self._token = await _authenticate(endpoint, self._user, self._password, timeout_s)
                return (_REQUIRE_LEADER, ("token", self._token))
        except TimeoutError as error:
            raise EtcdUnavailable("no token in time", endpoint=endpoint.address) from error

    def forget(self, metadata: Metadata) -> bool:
        """Drop the token that ``metadata`` carries, unless it was replaced already. False without tokens."""
        if self.enabled and ("token", self._token) in metadata:
            self._token = None
        return self.enabled


async def _authenticate(endpoint: Endpoint, user: str, password: str, timeout_s: float) -> str:
    call = wire.authenticate_call(user, password)
    try:
        answer = await endpoint.unary(call.path)(call.request, timeout=timeout_s, metadata=(_REQUIRE_LEADER,))
    except grpc.aio.AioRpcError as failure:
        raise translate(failure, endpoint=endpoint.address, key=call.key) from failure
    return call.decode(answer)
