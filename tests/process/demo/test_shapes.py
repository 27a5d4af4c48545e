"""Workers of different shapes: real controls, data planes and engines, and exactly the single-process run's tokens."""

import json
import tempfile
from pathlib import Path

import pytest

from tests.process.demo.commands import finished, kvferry
from tests.process.demo.pairwise import Case, covering, representatives

FACTORS = {
    "prefill": ["1x1", "2x1", "4x1", "1x2", "2x2", "1x3"],
    "decode": ["1x1", "2x1", "4x1", "1x2", "2x2", "1x3"],
    "blocks": ["16:16", "16:64", "32:128", "64:16", "128:32"],
    "order": ["nhd:nhd", "nhd:hnd", "hnd:nhd", "cross-layer:nhd"],
    "model": ["8 heads", "4 heads", "1 head", "mla", "window"],
}
"""Shapes are tensor-parallel degree x pipeline stages; as many ranks as two cores carry."""
MODELS = {
    "8 heads": ["--kv-heads", "8"],
    "4 heads": ["--kv-heads", "4"],
    "1 head": ["--kv-heads", "1"],
    "mla": ["--mla"],
    "window": ["--window", "48"],
}


def ranks(shape: str) -> int:
    """Data planes that a shape takes."""
    tensor, pipeline = shape.split("x")
    return int(tensor) * int(pipeline)


def arguments(case: Case) -> list[str]:
    """The demo's command line for a case."""
    words = ["demo", "--json", "--requests", "2", "--layers", "5", *MODELS[case["model"]]]
    for side in ("prefill", "decode"):
        tensor, pipeline = case[side].split("x")
        words += [f"--{side}-tp", tensor, f"--{side}-pp", pipeline]
    for name, value in zip(("prefill", "decode"), case["blocks"].split(":"), strict=True):
        words += [f"--block-size-{name}", value]
    for name, value in zip(("prefill", "decode"), case["order"].split(":"), strict=True):
        words += [f"--layout-{name}", value]
    return words


CASES = covering(FACTORS, lambda case: ranks(case["prefill"]) + ranks(case["decode"]) <= 6)
SHORT = representatives(CASES)[1:2]
"""Cases of the ordinary run: one. That every value and pair of them occurs is for the long run."""


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id="-".join(case.values()).replace(" ", ""),
            marks=[] if case in SHORT else [pytest.mark.long],
        )
        for case in CASES
    ],
)
async def test_any_shape_decodes_the_same_tokens(case: Case) -> None:
    """Every token is the single-process run's, every byte is accounted for, and nothing is held afterwards."""
    with tempfile.TemporaryDirectory(prefix="kvf-") as path:
        async with kvferry(*arguments(case), temporary=Path(path)) as demo:
            status, out, err = await finished(demo)
    assert status == 0, out + err
    found = json.loads(out)
    assert [True, True, 0, 0] == [found[key] for key in ("ok", "tokens_equal", "leaked_leases", "leaked_blocks")]
    assert found["bytes_expected"] == found["bytes_pulled"] > 0
