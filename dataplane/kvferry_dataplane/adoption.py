"""Whose a data plane is told to be: what is checked of it, and whether it begins another life."""

from kvferry.core.errors import InvalidArgument, LayoutInvalid
from kvferry.core.layouts import validate_layout
from kvferry.dataplane.v1 import dataplane_pb2 as pb
from kvferry.rpc.layouts import layout_from_wire
from kvferry_dataplane.plan import Side

INSTANCE_ID_BYTES = 16
HANDLE_KEY_BYTES_MAX = 64
WORKER_CHARS_MAX = 256


def checked_adoption(adoption: pb.Adoption, pool_bytes: int) -> Side | None:
    """The rank's side of the layout; None while there is no layout.

    Raises:
        InvalidArgument: names the field.
        LayoutInvalid: the layout contradicts itself, leaves the pool, or lacks the rank.
    """
    if not 1 <= len(adoption.worker) <= WORKER_CHARS_MAX:
        raise InvalidArgument.of_field(
            "adoption.worker", adoption.worker, f"must have 1 to {WORKER_CHARS_MAX} characters"
        )
    if len(adoption.instance_id) != INSTANCE_ID_BYTES:
        raise InvalidArgument.of_field(
            "adoption.instance_id", f"{len(adoption.instance_id)} bytes", f"must have {INSTANCE_ID_BYTES} bytes"
        )
    if len(adoption.handle_key) > HANDLE_KEY_BYTES_MAX:
        raise InvalidArgument.of_field(
            "adoption.handle_key", f"{len(adoption.handle_key)} bytes", f"at most {HANDLE_KEY_BYTES_MAX} bytes"
        )
    if not adoption.HasField("layout"):
        return None
    layout = layout_from_wire(adoption.layout)
    validate_layout(layout, {adoption.rank: pool_bytes})
    if adoption.rank >= len(layout.ranks):
        raise LayoutInvalid.of_field("adoption.rank", adoption.rank, f"the layout has {len(layout.ranks)} ranks")
    return Side(layout, adoption.rank, pool_bytes)


def is_other_life(known: pb.Adoption | None, given: pb.Adoption) -> bool:
    """Whether leases of the known life must end. To learn one's first incarnation is not another life."""
    if known is None:
        return False
    same = (known.worker, known.instance_id, known.rank) == (given.worker, given.instance_id, given.rank)
    return not same or known.incarnation not in (0, given.incarnation)
