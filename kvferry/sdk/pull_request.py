"""The request of a pull, its arguments checked before anything is sent."""

from kvferry.core.checksums.shares import every_of
from kvferry.core.errors import InvalidArgument
from kvferry.layout.v1.layout_pb2 import BlockList
from kvferry.sdk.arguments import (
    COUNT_MAX,
    PRIORITY_MAX,
    TOKENS_MAX,
    checked_handle,
    checked_id,
    checked_int,
    checked_size,
)
from kvferry.transfer.v1.transfer_pb2 import CreateTransferRequest


def pull_request(
    handle: bytes,
    blocks: list[BlockList],
    request_id: str | None,
    priority: int,
    *,
    first_token: int,
    data_parallel_rank: int,
    resumable: bool,
    verify: str | None,
) -> CreateTransferRequest:
    """The request but for its times; ``blocks`` were checked before.

    Raises:
        InvalidArgument, HandleMalformed, MessageTooLarge: an argument is wrong; names it.
    """
    request = CreateTransferRequest(
        request_id=checked_id("request_id", request_id),
        handle=checked_handle(handle),
        destination_blocks=blocks,
        priority=checked_int("priority", priority, -PRIORITY_MAX, PRIORITY_MAX),
        first_token=checked_int("first_token", first_token, 0, TOKENS_MAX),
        data_parallel_rank=checked_int("data_parallel_rank", data_parallel_rank, 0, COUNT_MAX),
        resumable=bool(resumable),
        compare_every=None if verify is None else _every("verify", verify),
    )
    checked_size("blocks", request)
    return request


def _every(field: str, value: object) -> int:
    if not isinstance(value, str):
        raise InvalidArgument.of_field(field, value, "must be off, full or sampled:N")
    return every_of(field, value)
