"""The synchronous faces against a scripted control in another process's stead: a thread with its own server."""

import inspect
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from kvferry.core.blocks import ids_of
from kvferry.core.errors import Fenced, InvalidArgument, NotReady
from kvferry.core.layouts import WorkerLayout
from kvferry.engine.v1 import engine_pb2, engine_pb2_grpc
from kvferry.error.v1 import error_pb2
from kvferry.publication.v1 import publication_pb2
from kvferry.rpc.block_lists import listed_ids
from kvferry.sdk.engine import EngineClient
from kvferry.sdk.results import PublicationState
from kvferry.sdk.router import RouterClient
from kvferry.sdk.sync import SyncEngineClient, SyncRouterClient
from kvferry.transfer.v1 import transfer_pb2


class ThreadedControl(engine_pb2_grpc.EngineServiceServicer):
    """A control on gRPC's own threads, so that it needs no event loop of this process.

    Transfers into block 13 are fenced, into block 99 never end; all others succeed at once.
    """

    def __init__(self, path: Path) -> None:
        self.cancelled = threading.Event()
        self.stopped = threading.Event()
        self.tell = threading.Event()
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        engine_pb2_grpc.add_EngineServiceServicer_to_server(self, self._server)
        self._server.add_insecure_port(f"unix:{path}")
        self._server.start()

    def stop(self) -> None:
        """End everything."""
        self.stopped.set()
        self._server.stop(0).wait()

    def OpenEngine(self, request: object, context: object) -> engine_pb2.OpenEngineResponse:
        return engine_pb2.OpenEngineResponse(worker="fake", incarnation=7)

    def ListHeldPublications(self, request: object, context: object) -> engine_pb2.ListHeldPublicationsResponse:
        return engine_pb2.ListHeldPublicationsResponse()

    def WatchEngine(self, request: object, context: object) -> Iterator[engine_pb2.WatchEngineResponse]:
        yield engine_pb2.WatchEngineResponse()
        ended = publication_pb2.Publication(name="publications/x", state=publication_pb2.PUBLICATION_STATE_EXPIRED)
        while not self.stopped.wait(0.01):
            if self.tell.is_set():
                self.tell.clear()
                yield engine_pb2.WatchEngineResponse(publication_ended=ended)

    def Pull(
        self, request_iterator: Iterator[engine_pb2.PullRequest], context: object
    ) -> Iterator[engine_pb2.PullResponse]:
        yield engine_pb2.PullResponse()
        for request in request_iterator:
            for command in request.commands:
                event = engine_pb2.PullEvent(command_id=command.command_id, transfer=self._answer(command))
                yield engine_pb2.PullResponse(events=[event])

    def _answer(self, command: engine_pb2.PullCommand) -> transfer_pb2.Transfer:
        request_id = command.create.request_id or command.withdraw.request_id
        transfer = transfer_pb2.Transfer(name="transfers/t", request_id=request_id, destination_settled=True)
        if command.HasField("withdraw"):
            self.cancelled.set()
            transfer.state = transfer_pb2.TRANSFER_STATE_CANCELLED
            return transfer
        match ids_of(listed_ids("blocks", command.create.destination_blocks[0])).tolist():
            case [13]:
                transfer.state = transfer_pb2.TRANSFER_STATE_FAILED
                transfer.failure.reason = error_pb2.REASON_FENCED
            case [99]:
                transfer.state = transfer_pb2.TRANSFER_STATE_READING
            case _:
                transfer.state = transfer_pb2.TRANSFER_STATE_SUCCEEDED
        return transfer

    def _unused(self, request: object, context: object) -> None:
        raise NotImplementedError

    Publish = RenewPublication = ReleasePublication = Heartbeat = _unused  # type: ignore[assignment]


@pytest.fixture
def threaded(folder: Path) -> Iterator[ThreadedControl]:
    """A control that listens at control.sock."""
    control = ThreadedControl(folder / "control.sock")
    yield control
    control.stop()


def test_pull_without_an_event_loop(threaded: ThreadedControl, folder: Path, handle: bytes) -> None:
    """A synchronous pull returns the result, and raises the same errors as the asynchronous one."""
    with SyncEngineClient.connect(folder / "control.sock", "engine") as engine:
        assert engine.worker == "workers/fake"
        assert engine.pull(handle, {"full": [1]}).succeeded
        pull = engine.start_pull(handle, {"full": [2]})
        assert (pull.name, pull.done()) == ("transfers/t", True)
        assert pull.wait().succeeded
        with pytest.raises(Fenced):
            engine.pull(handle, {"full": [13]})
        with pytest.raises(InvalidArgument, match="timeout_s"):
            engine.pull(handle, {"full": [1]}, timeout_s=-1)
        waiting = engine.start_pull(handle, {"full": [99]})
        assert waiting.cancel().state == "cancelled"
    with pytest.raises(NotReady):
        engine.pull(handle, {"full": [1]})


def test_interrupt_cancels_the_transfer(
    threaded: ThreadedControl, folder: Path, handle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt while a synchronous pull waits cancels the transfer before it goes on."""
    with SyncEngineClient.connect(folder / "control.sock", "engine") as engine:
        pull = engine.start_pull(handle, {"full": [99]})

        def interrupted(_future: object, _timeout: float | None = None) -> object:
            raise KeyboardInterrupt

        monkeypatch.setattr(futures.Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pull.wait()
        monkeypatch.undo()
        assert threaded.cancelled.wait(10)


def test_events_without_an_event_loop(threaded: ThreadedControl, folder: Path) -> None:
    """publication_ended is a plain iterator, which sees what comes after it was made."""
    with SyncEngineClient.connect(folder / "control.sock", "engine") as engine:
        ended = engine.publication_ended()
        threaded.tell.set()
        publication = next(ended)
        assert (publication.name, publication.state) == ("publications/x", PublicationState.EXPIRED)
        ended.close()  # type: ignore[attr-defined]


def test_clients_share_one_thread(threaded: ThreadedControl, folder: Path) -> None:
    """Any number of synchronous clients, one after the other or at once, has one background thread."""

    def threads() -> int:
        return sum(thread.name == "kvferry-sdk" for thread in threading.enumerate())

    path = folder / "control.sock"
    with SyncEngineClient.connect(path, "a"), SyncEngineClient.connect(path, "b"), SyncRouterClient("127.0.0.1:1"):
        assert threads() == 1
    with SyncEngineClient.connect(path, "a"):
        assert threads() == 1


def test_failed_entry_can_be_tried_again(folder: Path, layout: WorkerLayout) -> None:
    """A control that is not there raises NotReady from the with statement; a later client finds it."""
    path = folder / "control.sock"
    with pytest.raises(NotReady), SyncEngineClient.connect(path, "e", layout, connect_timeout_s=0.1):
        pytest.fail("entered")
    control = ThreadedControl(path)
    with SyncEngineClient.connect(path, "e", connect_timeout_s=10) as engine:
        assert engine.incarnation == 7
    control.stop()


@pytest.mark.parametrize(("face", "original"), [(SyncEngineClient, EngineClient), (SyncRouterClient, RouterClient)])
def test_faces_mirror_their_originals(face: type, original: type) -> None:
    """Every public method of a client is there in its synchronous face, with the same parameters."""
    for name, member in inspect.getmembers(original):
        if name.startswith("_") or not callable(member):
            continue
        assert hasattr(face, name), name
        assert list(inspect.signature(getattr(face, name)).parameters) == list(inspect.signature(member).parameters)
