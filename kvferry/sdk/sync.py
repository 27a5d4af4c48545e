"""The synchronous faces: the same methods with the same arguments, each waiting for its asynchronous original."""

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

from kvferry.core.errors import NotReady
from kvferry.core.layouts import WorkerLayout
from kvferry.sdk.engine import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S, EngineClient
from kvferry.sdk.events import EngineEvent
from kvferry.sdk.loop_thread import Hosted, LoopThread
from kvferry.sdk.pools import PoolInfo
from kvferry.sdk.pulls import Pull
from kvferry.sdk.results import TransferResult
from kvferry.sdk.router import TIMEOUT_S, RouterClient
from kvferry.sdk.worker_client import WorkerClient

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
_Original = TypeVar("_Original")


class _Face(Generic[_Original]):
    """An asynchronous object and the loop that it lives on."""

    def __init__(self, original: _Original, thread: LoopThread | None) -> None:
        self._original = original
        self._thread = thread

    def _on(self) -> LoopThread:
        if self._thread is None:
            raise NotReady("the client is not open: use it as a context manager")
        return self._thread


def _waiting(
    method: Callable[Concatenate[_Original, _Args], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[_Face[_Original], _Args], _Result]:
    """The synchronous form of a method, with its name, arguments and documentation."""

    @wraps(method)
    def call(self: _Face[_Original], *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        return self._on().call(method(self._original, *args, **kwargs))

    return cast("Callable[Concatenate[_Face[_Original], _Args], _Result]", call)


def _iterating(
    method: Callable[Concatenate[_Original, _Args], AsyncIterator[_Result]],
) -> Callable[Concatenate[_Face[_Original], _Args], Iterator[_Result]]:
    """The synchronous form of a method that gives an asynchronous iterator."""

    @wraps(method)
    def iterate(self: _Face[_Original], *args: _Args.args, **kwargs: _Args.kwargs) -> Iterator[_Result]:
        thread = self._on()

        async def begin() -> AsyncIterator[_Result]:
            return method(self._original, *args, **kwargs)

        return _iterate(thread, thread.call(begin()))

    return cast("Callable[Concatenate[_Face[_Original], _Args], Iterator[_Result]]", iterate)


def _iterate(thread: LoopThread, items: AsyncIterator[_Result]) -> Iterator[_Result]:
    async def following() -> _Result:
        return await anext(items)

    async def end() -> None:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()

    try:
        while True:
            try:
                yield thread.call(following())
            except StopAsyncIteration:
                return
    finally:
        thread.call(end())


class _SyncClient(_Face[_Original]):
    """A face that is a context manager and hosts its original on the shared loop."""

    _hosted: Hosted | None = None

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise NotReady("the client is open already")
        thread = LoopThread.shared()
        hosted = Hosted(thread, cast("Any", self._original))
        hosted.wait_entered()
        self._thread, self._hosted = thread, hosted
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._on()
        self._thread = None
        if self._hosted is not None:
            self._hosted.leave()


class SyncPull(_Face[Pull]):
    """A transfer under way. Made by ``SyncEngineClient.start_pull``."""

    wait = _waiting(Pull.wait)
    cancel = _waiting(Pull.cancel)
    wait_settled = _waiting(Pull.wait_settled)

    @property
    def name(self) -> str:
        """``transfers/{transfer}``."""
        return self._original.name

    @property
    def request_id(self) -> str:
        """As given, or as chosen by the client."""
        return self._original.request_id

    @property
    def transfer(self) -> TransferResult:
        """The transfer as last heard of."""
        return self._original.transfer

    def done(self) -> bool:
        """Whether :meth:`wait` returns at once."""
        return self._original.done()


def _starting(
    method: Callable[Concatenate[EngineClient, _Args], Coroutine[Any, Any, Pull]],
) -> Callable[Concatenate[_Face[EngineClient], _Args], SyncPull]:
    @wraps(method)
    def start(self: _Face[EngineClient], *args: _Args.args, **kwargs: _Args.kwargs) -> SyncPull:
        thread = self._on()
        return SyncPull(thread.call(method(self._original, *args, **kwargs)), thread)

    return cast("Callable[Concatenate[_Face[EngineClient], _Args], SyncPull]", start)


class SyncEngineClient(_SyncClient[EngineClient]):
    """``EngineClient`` for code without an event loop: ``with SyncEngineClient.connect(...) as engine``."""

    @classmethod
    def connect(
        cls,
        socket_path: str | os.PathLike[str],
        engine_id: str,
        layout: WorkerLayout | None = None,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        call_timeout_s: float = CALL_TIMEOUT_S,
        on_event: Callable[[EngineEvent], None] | None = None,
    ) -> Self:
        """As ``EngineClient.connect``; ``on_event`` is called on the background thread and must not block."""
        original = EngineClient.connect(
            socket_path,
            engine_id,
            layout,
            connect_timeout_s=connect_timeout_s,
            call_timeout_s=call_timeout_s,
            on_event=on_event,
        )
        return cls(original, None)

    attach = _waiting(EngineClient.attach)
    publish = _waiting(EngineClient.publish)
    renew = _waiting(EngineClient.renew)
    release = _waiting(EngineClient.release)
    held_publications = _waiting(EngineClient.held_publications)
    wait_ended = _waiting(EngineClient.wait_ended)
    publication_ended = _iterating(EngineClient.publication_ended)
    events = _iterating(EngineClient.events)
    pull = _waiting(EngineClient.pull)
    wait_settled = _waiting(EngineClient.wait_settled)
    start_pull = _starting(EngineClient.start_pull)

    @property
    def layout(self) -> WorkerLayout | None:
        """As given to :meth:`connect`."""
        return self._original.layout

    @property
    def worker(self) -> str:
        """``workers/{worker}`` of this engine."""
        return self._original.worker

    @property
    def incarnation(self) -> int:
        """Of the worker; 0 while etcd has not confirmed its registration."""
        return self._original.incarnation

    @property
    def pools(self) -> tuple[PoolInfo, ...]:
        """Pools that can be attached, in order of their ranks."""
        return self._original.pools


class SyncWorkerClient(_Face[WorkerClient]):
    """``WorkerClient`` for code without an event loop. Made by ``SyncRouterClient.of_worker``."""

    publications = _waiting(WorkerClient.publications)
    publication = _waiting(WorkerClient.publication)
    transfers = _waiting(WorkerClient.transfers)
    transfer = _waiting(WorkerClient.transfer)
    watch_transfers = _iterating(WorkerClient.watch_transfers)
    cancel_transfer = _waiting(WorkerClient.cancel_transfer)
    drain = _waiting(WorkerClient.drain)
    undrain = _waiting(WorkerClient.undrain)
    watch_drain = _iterating(WorkerClient.watch_drain)

    @property
    def name(self) -> str:
        """``workers/{worker}``."""
        return self._original.name


class SyncRouterClient(_SyncClient[RouterClient]):
    """``RouterClient`` for code without an event loop: ``with SyncRouterClient(...) as router``."""

    def __init__(self, endpoints: str | Sequence[str], *, timeout_s: float = TIMEOUT_S) -> None:
        """As ``RouterClient``."""
        super().__init__(RouterClient(endpoints, timeout_s=timeout_s), None)

    workers = _waiting(RouterClient.workers)
    worker = _waiting(RouterClient.worker)
    watch_workers = _iterating(RouterClient.watch_workers)
    check_pair = _waiting(RouterClient.check_pair)
    pairs = _waiting(RouterClient.pairs)

    def of_worker(self, name: str) -> SyncWorkerClient:
        """As ``RouterClient.of_worker``."""
        return SyncWorkerClient(self._original.of_worker(name), self._on())
