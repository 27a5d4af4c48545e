"""What this worker's handles say, and what others' handles say."""

from google.protobuf.message import DecodeError

from kvferry.core.errors import HandleMalformed, InvalidArgument, StaleIncarnation
from kvferry.core.handles import payload_of, seal, verify
from kvferry.publication.v1 import publication_pb2 as pb

KNOWN_MAX = 1_024
"""Handles whose signatures are known to be right: readers ask for a publication, and tell of their ends soon after."""


def parse_payload(payload: bytes) -> pb.HandlePayload:
    """The payload of a handle.

    Raises:
        HandleMalformed: it is none, or says nothing.
    """
    try:
        parsed = pb.HandlePayload.FromString(payload)
    except DecodeError as error:
        raise HandleMalformed.of_field("handle", f"{len(payload)} bytes", "its payload cannot be parsed") from error
    if not parsed.worker or not parsed.publication:
        raise HandleMalformed.of_field("handle", f"{len(payload)} bytes", "names no worker or publication")
    return parsed


def make_handle(worker: str, incarnation: int, publication: str, token_count: int, key: bytes) -> bytes:
    """A signed handle for one of our publications."""
    payload = pb.HandlePayload(worker=worker, incarnation=incarnation, publication=publication, token_count=token_count)
    return seal(payload.SerializeToString(), key)


class OwnHandles:
    """Opens handles of one life of this worker; a signature is looked at once, however often its handle comes.

    A handle is known again by all of its bytes. It says only what was published: whether that lives still is for the
    caller to see, each time.
    """

    def __init__(self) -> None:
        self._life: tuple[str, int, bytes] | None = None
        self._publications: dict[bytes, str] = {}
        """By handle; the oldest is forgotten beyond ``KNOWN_MAX``."""

    def publication(self, handle: bytes, worker: str, incarnation: int, key: bytes) -> str:
        """The publication that a handle names; raises as :func:`open_handle`."""
        life = (worker, incarnation, key)
        if life != self._life:
            self._life, self._publications = life, {}
        known = self._publications.get(handle)
        if known is None:
            known = open_handle(handle, worker, incarnation, key).publication
            if len(self._publications) >= KNOWN_MAX:
                del self._publications[next(iter(self._publications))]
            self._publications[handle] = known
        return known


def open_handle(handle: bytes, worker: str, incarnation: int, key: bytes) -> pb.HandlePayload:
    """Read a handle that should be ours.

    The incarnation is looked at before the signature, since every life of a worker has a key of its own.

    Raises:
        HandleMalformed: the bytes are no handle.
        InvalidArgument: it is another worker's.
        StaleIncarnation: it is of another life of this worker.
        HandleForged: its signature is wrong.
    """
    payload = parse_payload(payload_of(handle))
    if payload.worker != worker:
        raise InvalidArgument.of_field("handle.worker", payload.worker, f"this is workers/{worker}")
    if payload.incarnation != incarnation:
        raise StaleIncarnation.of_field(
            "handle.incarnation", payload.incarnation, f"workers/{worker} is incarnation {incarnation}"
        )
    verify(handle, key)
    return payload
