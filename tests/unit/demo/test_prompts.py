"""What the demo asks."""

import pytest

from kvferry.core.errors import InvalidArgument
from kvferry.demo.prompts import document_text, make_requests


def test_prompts_reach_from_the_shortest_to_the_longest() -> None:
    """Sixteen prompts have sixteen lengths, from 16 to 2,000 tokens, and ids of their own."""
    requests = make_requests(16)
    lengths = sorted(len(request.prompt_tokens) for request in requests)
    assert (16, 2_000, 16) == (lengths[0], lengths[-1], len(set(lengths)))
    assert 16 == len({request.request_id for request in requests})


def test_prompts_are_text_of_the_project() -> None:
    """Every prompt is a piece of the project's documents, one token per byte."""
    text = document_text()
    assert [] == [r.request_id for r in make_requests(16) if bytes(r.prompt_tokens) not in text]


@pytest.mark.parametrize("count", [0, 1001])
def test_a_wrong_number_of_requests_is_refused(count: int) -> None:
    """The number of requests is bounded, and the error names it."""
    with pytest.raises(InvalidArgument) as refused:
        make_requests(count)
    assert {"field": "requests", "value": str(count)} == refused.value.metadata
