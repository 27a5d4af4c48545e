"""What the demo asks, and the bytes that it must move."""

import pytest

from kvferry.core.errors import InvalidArgument
from kvferry.demo.arithmetic import block_bytes, expected_bytes
from kvferry.demo.prompts import document_text, make_requests
from kvferry.reference_engine.config import ModelConfig


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


def test_expected_bytes_count_last_blocks_whole() -> None:
    """17 tokens take two blocks of 16: layers x K and V x heads x tokens x dimension x 2 bytes each."""
    config = ModelConfig(num_layers=3, num_kv_heads=2, num_heads=4, head_dim=8)
    assert 3 * 2 * 2 * 16 * 8 * 2 == block_bytes(config, 16)
    assert (1 + 2) * 3072 == expected_bytes(config, 16, [16, 17])
