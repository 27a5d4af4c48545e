"""Arguments are refused before anything is sent, naming field and value."""

import math
from typing import cast

import numpy as np
import pytest
import torch

from kvferry.core.dense import DenseModel, dense_layout
from kvferry.core.errors import BlockError, HandleMalformed, InvalidArgument, KvferryError, MessageTooLarge
from kvferry.core.handles import new_key, seal
from kvferry.core.layouts import ElementType
from kvferry.core.reasons import Reason
from kvferry.rpc.block_lists import block_list
from kvferry.rpc.options import MESSAGE_BYTES_MAX
from kvferry.sdk.arguments import (
    Blocks,
    block_counts,
    checked_blocks,
    checked_handle,
    checked_id,
    checked_int,
    checked_name,
    checked_seconds,
    checked_size,
)
from kvferry.transfer.v1.transfer_pb2 import CreateTransferRequest

COUNTS = block_counts(dense_layout(DenseModel("model", 1, 1, 8, 16, ElementType.FLOAT16), 64))


def assert_names(error: KvferryError, field: str, value: str) -> None:
    """The error names the field and its value, in its message and as metadata."""
    assert error.metadata["field"] == field
    assert value in error.metadata["value"]
    assert field in error.message


@pytest.mark.parametrize(
    "blocks",
    [
        [3, 1, 2],
        (3, 1, 2),
        {"full": [3, 1, 2]},
        np.array([3, 1, 2], dtype=np.uint32),
        [np.int64(3), np.int64(1), np.int64(2)],
        torch.tensor([3, 1, 2]),
    ],
)
def test_blocks_of_any_kind(blocks: Blocks) -> None:
    """Lists, tuples, numpy arrays, torch tensors and mappings by group give the same block list, in order."""
    assert checked_blocks("blocks", blocks, COUNTS) == [block_list("full", np.array([3, 1, 2]))]


@pytest.mark.parametrize(
    ("blocks", "field", "value"),
    [
        ([], "blocks[full]", "[]"),
        ({}, "blocks", "{}"),
        ({"full": []}, "blocks[full]", "[]"),
        ({"window": [1]}, "blocks.group", "window"),
        ([1, 2.5], "blocks[full][1]", "2.5"),
        ([True], "blocks[full][0]", "True"),
        (np.array([0.5]), "blocks[full][0]", "0.5"),
        (np.array([[1]]), "blocks[full][0]", "[1]"),
        (torch.tensor(1), "blocks[full]", "1"),
        ("12", "blocks[full]", "str"),
        (7, "blocks[full]", "int"),
    ],
)
def test_blocks_that_are_no_lists_of_ids(blocks: object, field: str, value: str) -> None:
    """What is not a list of integers of a known group raises InvalidArgument."""
    with pytest.raises(InvalidArgument) as caught:
        checked_blocks("blocks", cast("Blocks", blocks), COUNTS)
    assert_names(caught.value, field, value)


@pytest.mark.parametrize(
    ("blocks", "field", "value", "reason"),
    [
        ([0, -1], "blocks[full][1]", "-1", Reason.BLOCK_OUT_OF_RANGE),
        ([0, 64], "blocks[full][1]", "64", Reason.BLOCK_OUT_OF_RANGE),
        ([0, 1 << 32], "blocks[full][1]", "4294967296", Reason.BLOCK_OUT_OF_RANGE),
        ([0, 1 << 64], "blocks[full][1]", "18446744073709551616", Reason.BLOCK_OUT_OF_RANGE),
        (np.array([0, -1], dtype=np.int8), "blocks[full][1]", "-1", Reason.BLOCK_OUT_OF_RANGE),
        (np.array([0, 1 << 32]), "blocks[full][1]", "4294967296", Reason.BLOCK_OUT_OF_RANGE),
        ([5, 6, 5], "blocks[full]", "5", Reason.BLOCK_DUPLICATE),
    ],
)
def test_ids_that_are_no_blocks(blocks: Blocks, field: str, value: str, reason: Reason) -> None:
    """Ids that are negative, beyond the layout or listed twice raise BlockError."""
    with pytest.raises(BlockError) as caught:
        checked_blocks("blocks", blocks, COUNTS)
    assert_names(caught.value, field, value)
    assert caught.value.reason is reason


def test_plain_list_needs_one_group() -> None:
    """Without a layout, block ids must come by group."""
    with pytest.raises(InvalidArgument, match="by group"):
        checked_blocks("blocks", [1], None)
    assert checked_blocks("blocks", {"any": [99]}, None) == [block_list("any", np.array([99]))]


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 86_401, "1", True, None])
def test_seconds_out_of_bounds(value: object) -> None:
    """Seconds that are no number, not finite, not positive or beyond a day are refused."""
    with pytest.raises(InvalidArgument) as caught:
        checked_seconds("timeout_s", cast("float", value))
    assert_names(caught.value, "timeout_s", str(value))


@pytest.mark.parametrize("value", ["", "x" * 129, "a\nb", 5])
def test_ids_out_of_bounds(value: object) -> None:
    """Ids that are empty, over 128 characters, unprintable or no text are refused."""
    with pytest.raises(InvalidArgument, match="request_id"):
        checked_id("request_id", cast("str", value))


def test_ids_are_fresh() -> None:
    """An id that is left out is made, a new one each time."""
    assert len({checked_id("request_id", None) for _ in range(100)}) == 100
    assert checked_id("request_id", "x" * 128) == "x" * 128


def test_integers() -> None:
    """Integers of any kind are taken within their bounds; others name the field."""
    assert checked_int("priority", cast("int", np.int32(5)), 0, 9) == 5
    for value in (-1, 10, 1.5, "1", True):
        with pytest.raises(InvalidArgument, match="priority="):
            checked_int("priority", cast("int", value), 0, 9)


def test_handles() -> None:
    """A handle that is cut off is refused here; one that is no bytes is refused without being shown."""
    handle = seal(b"payload", new_key())
    assert checked_handle(handle) == handle
    with pytest.raises(HandleMalformed):
        checked_handle(handle[:-1])
    with pytest.raises(InvalidArgument) as caught:
        checked_handle(cast("bytes", "secret"))
    assert "secret" not in str(caught.value)


def test_names() -> None:
    """Resource names are taken with and without their collection."""
    assert checked_name("workers", "a") == checked_name("workers", "workers/a") == "workers/a"
    for name in ("", "workers/", "transfers/a", "workers/a/b", None):
        with pytest.raises(InvalidArgument, match="name="):
            checked_name("workers", cast("str", name))


def test_message_size() -> None:
    """A message beyond what the other side takes is refused, naming its size."""
    checked_size("blocks", CreateTransferRequest(handle=b"x"))
    with pytest.raises(MessageTooLarge) as caught:
        checked_size("blocks", CreateTransferRequest(handle=b"x" * MESSAGE_BYTES_MAX))
    assert_names(caught.value, "blocks", "bytes")
