"""The demo's verdict: each thing that can differ makes it fail."""

from dataclasses import replace

import pytest

from kvferry.demo.prompts import Request
from kvferry.demo.report import DemoReport, wrong_tokens
from kvferry.demo.router import Served
from kvferry.sdk.results import TransferResult, TransferState


def served(request_id: str, tokens: tuple[int, ...], received_bytes: int = 100) -> Served:
    """A request that was answered with ``tokens``."""
    transfer = TransferResult(
        name="transfers/t",
        request_id=request_id,
        state=TransferState.SUCCEEDED,
        destination_settled=True,
        path="nixl",
        received_bytes=received_bytes,
    )
    return Served(Request(request_id, (1, 2)), tokens, transfer)


GOOD = DemoReport(
    served=(served("a", (5, 6)), served("b", (7,))),
    wrong_tokens=(),
    bytes_expected=200,
    leaked_leases=0,
    leaked_blocks=0,
    serving_s=1.0,
    total_s=2.0,
)


def test_a_run_without_differences_is_ok() -> None:
    """Equal tokens, equal bytes and nothing held make the demo succeed."""
    assert (True, 200, {"nixl": 2}) == (GOOD.ok, GOOD.bytes_pulled, dict(GOOD.paths))


@pytest.mark.parametrize(
    "difference", [{"wrong_tokens": ("a",)}, {"bytes_expected": 201}, {"leaked_leases": 1}, {"leaked_blocks": 1}]
)
def test_any_difference_fails_the_run(difference: dict[str, object]) -> None:
    """One wrong token, byte, lease or block is enough to fail."""
    assert not replace(GOOD, **difference).ok  # type: ignore[arg-type]


def test_wrong_tokens_names_requests_that_differ_or_are_missing() -> None:
    """A request with another token, or one that the single-process run did not answer, is named."""
    answers = [served("a", (5, 6)), served("b", (7, 8)), served("c", (9,))]
    assert ("b", "c") == wrong_tokens(answers, {"a": [5, 6], "b": [7, 9]})
