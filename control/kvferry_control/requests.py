"""Rules for request ids, resource names and pages, the same in every service."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from kvferry.core.errors import InvalidArgument

REQUEST_ID_CHARS_MAX = 128
PAGE_SIZE_DEFAULT = 100
PAGE_SIZE_MAX = 1_000

_Item = TypeVar("_Item")


def check_id(field: str, value: str) -> str:
    """A caller's id.

    Raises:
        InvalidArgument: it is empty, too long, or has characters that cannot be printed.
    """
    if not 1 <= len(value) <= REQUEST_ID_CHARS_MAX or not value.isprintable():
        raise InvalidArgument.of_field(field, value, f"must be 1 to {REQUEST_ID_CHARS_MAX} printable characters")
    return value


def id_of(collection: str, name: str) -> str:
    """The id in a resource name ``{collection}/{id}``.

    Raises:
        InvalidArgument: the name is of another form.
    """
    prefix, separator, identity = name.partition("/")
    if prefix != collection or not separator or not identity or "/" in identity:
        raise InvalidArgument.of_field("name", name, f"must be {collection}/{{id}}")
    return identity


def fingerprint(message: Message) -> bytes:
    """SHA-256 of a request's body, to tell whether a request id comes with the same body again."""
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()


def page(
    items: Sequence[_Item], page_size: int, page_token: str, key: Callable[[_Item], str]
) -> tuple[list[_Item], str]:
    """One page of ``items`` and the token of the next. A token is the key of the page's last item.

    Raises:
        InvalidArgument: the size is out of bounds, or the token names no item any more.
    """
    if page_size > PAGE_SIZE_MAX:
        raise InvalidArgument.of_field("page_size", page_size, f"at most {PAGE_SIZE_MAX}")
    size = page_size or PAGE_SIZE_DEFAULT
    start = 0
    if page_token:
        start = next((i + 1 for i, item in enumerate(items) if key(item) == page_token), -1)
        if start < 0:
            raise InvalidArgument.of_field("page_token", page_token, "this page is gone; list again from the start")
    chosen = list(items[start : start + size])
    more = start + size < len(items)
    return chosen, key(chosen[-1]) if more else ""
