"""What the demo found out, and whether that is what should be."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvferry.demo.router import Served


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The verdict and all it rests on."""

    served: tuple[Served, ...]
    wrong_tokens: tuple[str, ...]
    """Ids of requests whose tokens differ from the single-process run's."""
    bytes_expected: int
    leaked_leases: int
    """Leases that were still held when everything should have been given back, on controls and data planes."""
    leaked_blocks: int
    """Blocks that the engines still held then."""
    serving_s: float
    """From the first request to the last answer."""
    total_s: float
    """From the first process started."""

    @property
    def bytes_pulled(self) -> int:
        """Bytes of all transfers."""
        return sum(one.transfer.received_bytes for one in self.served)

    @property
    def paths(self) -> Mapping[str, int]:
        """Transfers by the path that they took."""
        return dict(Counter(one.transfer.path for one in self.served))

    @property
    def tokens_equal(self) -> bool:
        """Whether every token is the single-process run's."""
        return not self.wrong_tokens

    @property
    def ok(self) -> bool:
        """Whether nothing differs and nothing leaked."""
        bytes_equal = self.bytes_pulled == self.bytes_expected
        return self.tokens_equal and bytes_equal and not self.leaked_leases and not self.leaked_blocks

    def to_dict(self) -> dict[str, object]:
        """The report for JSON."""
        return {
            "ok": self.ok,
            "requests": len(self.served),
            "tokens_equal": self.tokens_equal,
            "wrong_tokens": list(self.wrong_tokens),
            "bytes_pulled": self.bytes_pulled,
            "bytes_expected": self.bytes_expected,
            "paths": dict(self.paths),
            "leaked_leases": self.leaked_leases,
            "leaked_blocks": self.leaked_blocks,
            "serving_s": round(self.serving_s, 3),
            "total_s": round(self.total_s, 3),
            "transfers": [
                {"prompt_tokens": len(one.request.prompt_tokens), **one.transfer.to_dict()} for one in self.served
            ],
        }


def wrong_tokens(served: Sequence[Served], alone: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
    """Ids of requests whose tokens are not those of the single-process run."""
    return tuple(
        one.request.request_id for one in served if list(one.tokens) != list(alone.get(one.request.request_id, ()))
    )
