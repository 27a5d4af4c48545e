"""What is asked of control for a pull, its arguments checked."""

from collections.abc import Sequence

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
from kvferry.sdk.timeouts import set_timeouts
from kvferry.transfer.v1 import transfer_pb2 as pb


def pull_request(  # noqa: PLR0913 - one for each argument of a pull
    handle: bytes,
    blocks: Sequence[BlockList],
    timeout_s: float,
    request_id: str | None,
    priority: int,
    *,
    first_token: int,
    data_parallel_rank: int,
    queue_timeout_s: float | None,
    verify: str | None,
) -> pb.CreateTransferRequest:
    """The request for a pull into ``blocks``, which were checked.

    Raises:
        InvalidArgument, HandleMalformed, MessageTooLarge: an argument is wrong; names it.
    """
    request = pb.CreateTransferRequest(
        request_id=checked_id("request_id", request_id),
        handle=checked_handle(handle),
        destination_blocks=blocks,
        priority=checked_int("priority", priority, -PRIORITY_MAX, PRIORITY_MAX),
        first_token=checked_int("first_token", first_token, 0, TOKENS_MAX),
        data_parallel_rank=checked_int("data_parallel_rank", data_parallel_rank, 0, COUNT_MAX),
        compare_every=None if verify is None else _every("verify", verify),
    )
    set_timeouts(request, timeout_s, queue_timeout_s)
    checked_size("blocks", request)
    return request


def _every(field: str, value: object) -> int:
    if not isinstance(value, str):
        raise InvalidArgument.of_field(field, value, "must be off, full or sampled:N")
    return every_of(field, value)
