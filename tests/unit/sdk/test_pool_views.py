"""Views of a pool: where each element lies, and what is refused."""

import mmap
import socket
from dataclasses import replace

import pytest
import torch

from kvferry.core.dense import CROSS_LAYER, HND, NHD, DenseModel, dense_layout
from kvferry.core.errors import InvalidArgument, LayoutInvalid, NotReady
from kvferry.core.layouts import ElementType, WorkerLayout
from kvferry.sdk.pools import AttachedPool, MappedPool, PoolInfo

POOL_BYTES = 1 << 20
MODEL = DenseModel("model", 3, 2, 8, 4, ElementType.BFLOAT16)


def pool_of(layout: WorkerLayout | None, pool_bytes: int = POOL_BYTES) -> AttachedPool:
    """A pool over private memory."""
    info = PoolInfo(rank=0, device="cpu", pool_bytes=pool_bytes, pool_socket="", boot_id=b"")
    memory = mmap.mmap(-1, pool_bytes)
    return AttachedPool(info, layout, MappedPool(memory, "cpu", socket.socket()))


def moved(layout: WorkerLayout, base_bytes: int) -> WorkerLayout:
    """The layout with its only placement elsewhere."""
    rank = layout.ranks[0]
    return replace(layout, ranks=(replace(rank, placements=(replace(rank.placements[0], base_bytes=base_bytes),)),))


@pytest.mark.parametrize("order", [NHD, HND, CROSS_LAYER])
@pytest.mark.parametrize("base_bytes", [0, 4096])
def test_elements_lie_where_the_strides_say(order: tuple[str, ...], base_bytes: int) -> None:
    """Element [layer, block, kv, token, head, dim] of the view is at base plus the sum of index times stride."""
    layout = moved(dense_layout(MODEL, 5, order=order), base_bytes)
    strides = layout.ranks[0].placements[0].strides
    pool = pool_of(layout)
    view = pool.kv()
    assert tuple(view.shape) == (3, 5, 2, 4, 2, 8)
    view[2, 3, 1, 1, 1, 5] = 2.0
    offset = (
        base_bytes + 2 * strides.layer + 3 * strides.block + strides.kv + strides.token + strides.head + 5 * strides.dim
    )
    assert pool.bytes[offset : offset + 2].view(torch.bfloat16).item() == 2.0
    assert torch.count_nonzero(pool.bytes).item() == 1
    pool.close()


@pytest.mark.parametrize("element", list(ElementType))
def test_every_element_type_has_a_view(element: ElementType) -> None:
    """Each element type is viewed as a torch type of its size."""
    pool = pool_of(dense_layout(replace(MODEL, element_type=element), 2))
    assert pool.kv("full").element_size() == element.size_bytes
    pool.close()


def test_unaligned_layouts_are_refused() -> None:
    """A base or a stride that splits an element names the field and its value."""
    pool = pool_of(moved(dense_layout(MODEL, 2), 3))
    with pytest.raises(LayoutInvalid, match="base_bytes=3"):
        pool.kv()
    pool.close()
    layout = dense_layout(MODEL, 2)
    rank = layout.ranks[0]
    placement = rank.placements[0]
    odd = replace(placement, strides=placement.strides._replace(layer=placement.strides.layer + 1))
    pool = pool_of(replace(layout, ranks=(replace(rank, placements=(odd,)),)))
    with pytest.raises(LayoutInvalid, match="strides.layer"):  # noqa: RUF043
        pool.kv()
    pool.close()


def test_views_beyond_the_pool_are_refused() -> None:
    """A layout that ends outside the pool is refused, not viewed."""
    pool = pool_of(dense_layout(MODEL, 500), pool_bytes=4096)
    with pytest.raises(LayoutInvalid, match="4096"):
        pool.kv()
    pool.close()


def test_unknown_group_and_missing_layout() -> None:
    """A group that the rank does not hold, and a client without a layout, are refused."""
    pool = pool_of(dense_layout(MODEL, 2))
    with pytest.raises(InvalidArgument, match="window"):
        pool.kv("window")
    pool.close()
    bare = pool_of(None)
    assert bare.bytes.numel() == POOL_BYTES
    with pytest.raises(InvalidArgument, match="layout"):
        bare.kv("full")
    bare.close()


def test_views_outlive_a_closed_pool() -> None:
    """A closed pool gives no more views; those that are out stay good."""
    pool = pool_of(dense_layout(MODEL, 2))
    view, array = pool.kv(), pool.numpy()
    pool.close()
    pool.close()
    with pytest.raises(NotReady):
        pool.kv()
    with pytest.raises(NotReady):
        pool.numpy()
    view.fill_(1.0)
    assert array[1] == 0x3F
