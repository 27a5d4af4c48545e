"""Numbers as people type and read them."""

import base64
from pathlib import Path

import pytest

from kvferry.cli.figures import parse_blocks, parse_size, rate_text, size_text
from kvferry.cli.pull import read_handle
from kvferry.core.errors import ConfigInvalid


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("64KiB", 64 << 10), ("512 MiB", 512 << 20), ("4gib", 4 << 30), ("17B", 17)],
)
def test_a_size_is_read_with_its_unit(text: str, expected: int) -> None:
    """A size is a number with a binary unit, in any case and with or without a space."""
    assert expected == parse_size("pool", text)


@pytest.mark.parametrize("text", ["", "0", "12xb", "-1", "1.5MiB", "MiB"])
def test_a_wrong_size_names_the_field_and_the_text(text: str) -> None:
    """What is no size is refused by the name of its field, with what was given."""
    with pytest.raises(ConfigInvalid) as refused:
        parse_size("pool", text)
    assert {"field": "pool", "value": text} == refused.value.metadata


def test_blocks_are_ids_and_ranges_in_the_order_given() -> None:
    """Block lists keep their order: it says which block holds which tokens."""
    assert [7, 0, 1, 2, 3] == parse_blocks("blocks", "7, 0-3")


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-4"])
def test_wrong_blocks_name_the_field(text: str) -> None:
    """A part that is no id and no ascending range is refused."""
    with pytest.raises(ConfigInvalid) as refused:
        parse_blocks("blocks", text)
    assert refused.value.metadata["field"] == "blocks"


@pytest.mark.parametrize(
    ("count", "expected"),
    [(17, "17 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (64 << 20, "64 MiB"), (3 << 30, "3 GiB")],
)
def test_sizes_are_written_with_binary_units(count: int, expected: str) -> None:
    """Bytes are written with the largest binary unit that is not more than they are."""
    assert expected == size_text(count)


def test_a_rate_without_time_is_a_dash() -> None:
    """Where no time was measured there is no rate to show."""
    assert ("2.00", "-") == (rate_text(2_000_000_000, 1.0), rate_text(10, 0.0))


def test_a_handle_is_read_as_hex_base64_or_file(tmp_path: Path) -> None:
    """The same handle comes from hex, both alphabets of base64, and a file of raw bytes."""
    handle = bytes([1, 250, 255, 3, 9])
    path = tmp_path / "handle"
    path.write_bytes(handle)
    texts = [
        handle.hex(),
        base64.b64encode(handle).decode(),
        base64.urlsafe_b64encode(handle).decode().rstrip("="),
        f"@{path}",
    ]
    assert [handle] * len(texts) == [read_handle(text) for text in texts]


def test_a_refused_handle_is_not_repeated() -> None:
    """A handle is a secret: the error about its form does not show it."""
    with pytest.raises(ConfigInvalid) as refused:
        read_handle("secret!handle")
    assert "secret" not in str(refused.value)
