"""Direct UCX. Only ``kvferry.device.ucx`` imports it; what its calls mean is written there."""

from collections.abc import Sequence

from kvferry.core.planning.copies import Offsets

class PlanError(Exception):
    """Arguments: field, value, what is wrong with it."""

class Failure(Exception):
    """Arguments: UCX's status, text."""

class LibraryUnusable(Exception): ...
class AgentUnusable(Exception): ...

class Library:
    @staticmethod
    def open(file: str) -> Library: ...
    @property
    def version(self) -> str: ...
    def text(self, status: int) -> str: ...

class Agent:
    def __init__(
        self,
        library: Library,
        *,
        gets_max: int,
        bytes_max: int,
        chunk_bytes_max: int,
        step_gets_max: int,
        step_bytes_max: int,
        polls: int,
    ) -> None: ...
    def supports(self, memory_type: int) -> bool: ...
    def add_region(self, address: int, size_bytes: int, memory_type: int) -> int: ...
    def region_key(self, region: int) -> bytes: ...
    def address(self) -> bytes: ...
    def connect(self, address: bytes, regions: Sequence[tuple[int, int, bytes]], sees_failures: bool) -> int:
        """Regions are address, size and key."""

    def disconnect(self, peer: int) -> None: ...
    def read(
        self,
        peer: int,
        remote: int,
        local: int,
        source_offsets: Offsets,
        destination_offsets: Offsets,
        lengths: Offsets,
    ) -> int: ...
    def cancel(self, batch: int) -> None: ...
    def poll(self, batch: int) -> tuple[bool, int, int]:
        """Whether it is done, the status of the first get that failed, bytes that arrived."""

    def progress(self) -> None: ...
    def gets_in_flight(self) -> int: ...
    def close(self) -> None: ...
